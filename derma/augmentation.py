"""Augmentation in two steps, one warp and one colour matrix: a fifth of the time of a chain of transforms.

Flips, turns, shears and crops are affine maps; so are changes of brightness, contrast, saturation and hue. Each kind
is multiplied into one matrix and applied once, by Pillow; it also blurs once instead of three times. Both take and give
PIL images and draw from torch's random numbers.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageStat

GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in torchvision's ColorJitter


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


@dataclass
class RandomWarp:
    """Flip, turn, shear, crop and resize an image at random, in one step.

    The same image as by ``RandomHorizontalFlip``, ``RandomVerticalFlip``, ``RandomAffine(degrees, shear=shear)`` and
    ``RandomResizedCrop(size, scale, ratio)`` in turn, interpolated once, linearly; what lies outside is black. The
    image should not be more than twice as large as the result: nothing is smoothed before it is made smaller.

    Args:
        size: side of the square that comes out, in pixels.
        degrees, shear: largest turn and largest shear of the horizontal, either way.
        scale: the least and the greatest share of the image's area that is cropped.
        ratio: the least and the greatest ratio of width to height of what is cropped.
    """

    size: int
    degrees: float
    shear: float
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return another view of a square image."""
        side = image.width
        flip = np.diag([1 - 2 * float(torch.rand(()) < 0.5), 1 - 2 * float(torch.rand(()) < 0.5)])
        angle = math.radians(_uniform(-self.degrees, self.degrees))
        skew = math.tan(math.radians(_uniform(-self.shear, self.shear)))
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        width, height = self._crop(side)
        left, top = _uniform(0, side - width), _uniform(0, side - height)
        crop = np.array([[width / self.size, 0, left], [0, height / self.size, top], [0, 0, 1]])
        # From a place in the result to the place in the image that is seen there, which is what Pillow asks for.
        linear, centre = flip @ turn @ np.array([[1, skew], [0, 1]]), np.full(2, side / 2)  # the centre stays
        matrix = np.column_stack([linear, centre - linear @ centre]) @ crop
        return image.transform(
            (self.size, self.size), Image.Transform.AFFINE, matrix.ravel().tolist(), Image.Resampling.BILINEAR
        )

    def _crop(self, side: int) -> tuple[float, float]:
        """Draw width and height as ``RandomResizedCrop`` does: the ratio's logarithm evenly, at most ten times."""
        for _ in range(10):
            area, ratio = _uniform(*self.scale), math.exp(_uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            width, height = side * math.sqrt(area * ratio), side * math.sqrt(area / ratio)
            if max(width, height) <= side:
                return width, height
        return side, side


@dataclass
class RandomColor:
    """Change brightness, contrast, saturation and hue at random, in one step.

    As torchvision's ``ColorJitter`` with the same arguments, but in a fixed order, clipped once at the end, and with
    the hue turned about the grey axis of the colour cube (Haeberli, 1993, http://www.graficaobscura.com/matrix/) in
    place of HSV's.

    Args:
        brightness, contrast, saturation: each is multiplied by a factor within so much of 1.
        hue: turned by up to this share of the full circle, either way.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return an RGB image in other light."""
        factors = [_uniform(1 - each, 1 + each) for each in (self.brightness, self.contrast, self.saturation)]
        return change_color(image, *factors, _uniform(-self.hue, self.hue))


def change_color(image: Image.Image, brightness: float, contrast: float, saturation: float, hue: float) -> Image.Image:
    """Multiply an image's brightness, contrast and saturation, and turn its hue.

    Args:
        image: RGB.
        brightness, contrast, saturation: factors; 1 changes nothing.
        hue: share of the full circle; 0 changes nothing.
    """
    angle = 2 * math.pi * hue
    axis = np.full(3, 1 / math.sqrt(3))
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = math.cos(angle) * np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * np.outer(axis, axis)
    saturate = saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), GREY)
    matrix = brightness * contrast * turn @ saturate
    # Contrast is about the image's mean grey, which has become brighter; greys pass the other two unchanged.
    mean = float(ImageStat.Stat(image).mean @ GREY)  # from histograms: a seventh of NumPy's time
    offset = np.full((3, 1), brightness * (1 - contrast) * mean)
    return image.convert("RGB", tuple(np.hstack([matrix, offset]).ravel().tolist()))


def views(batch: torch.Tensor, augment: bool) -> list[torch.Tensor]:
    """Return the views of images over which predictions are averaged (test-time augmentation).

    Args:
        batch: images (N, 3, S, S), or features (N, views, width) that were computed of their views before.
        augment: the eight flips and quarter turns of images, none of which changes the class; else the images alone.
    """
    if batch.ndim == 3:
        return [view.contiguous() for view in batch.unbind(1)]  # the layout decides the last digit of what follows
    if not augment:
        return [batch]
    return [torch.rot90(flipped, turns, (2, 3)) for flipped in (batch, batch.flip(3)) for turns in range(4)]
