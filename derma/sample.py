"""Draw dermoscopy-like images, so that everything in this repository runs without a download.

    python -m derma.sample                          # data/sample: 480 / 90 / 150 images of 256 x 192

The drawings follow the ABCD rule (Nachbar et al., 1994, https://doi.org/10.1016/S0190-9622(94)70061-3) and the signs
that dermoscopists agree on (Argenziano et al., 2003, https://doi.org/10.1067/mjd.2003.281). A melanoma is asymmetric
and ragged, of several colours, perhaps under a blue-white veil. A nevus is round and even, in one or two browns, often
with a regular pigment network. A seborrheic keratosis has a sharp edge, a waxy look, milia-like cysts and comedo-like
openings. Signs vary in strength, and some images borrow those of another class, so the classes overlap. Light, skin,
hairs, ruler marks, gel bubbles and dark corners do not depend on the class.

These are drawings: what a network trained on them predicts says nothing about skin.
"""

import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage.filters import gaussian

from derma.commands import Parser, progress, run_main
from derma.dataset import CLASSES, SPLITS

# Images of melanoma, nevus and seborrheic keratosis, in the proportions of ISIC 2017.
COUNTS = {"train": (90, 329, 61), "valid": (18, 47, 25), "test": (29, 98, 23)}
SIZE = (256, 192)
BORROWED = 0.12  # share of images with the shape, the texture or the colours of another class

MELANIN = np.array([0.50, 1.00, 1.55], np.float32)  # absorbs blue most, so it looks brown
WAX = np.array([0.42, 0.85, 1.75], np.float32)  # a yellower brown
VEIL = np.array([0.47, 0.52, 0.63], np.float32)
RED = np.array([0.70, 0.36, 0.34], np.float32)
WHITE = np.array([0.88, 0.82, 0.80], np.float32)
# Ranges of the outline's mean radius (short sides), ratio of axes, waviness and raggedness (radii).
OUTLINES = {
    "melanoma": ((0.22, 0.38), (0.60, 0.95), (0.03, 0.13), (0.02, 0.07)),
    "nevus": ((0.17, 0.36), (0.75, 1.00), (0.01, 0.06), (0.00, 0.03)),
    "seborrheic_keratosis": ((0.19, 0.38), (0.65, 1.00), (0.02, 0.09), (0.00, 0.03)),
}
# How wide the border's fade is, in radii: a nevus fades out, a keratosis looks stuck on.
FADES = {"melanoma": (0.05, 0.25), "nevus": (0.08, 0.35), "seborrheic_keratosis": (0.02, 0.08)}


class Canvas:
    """Coordinates and noise for one image, in units of its short side, so that any size shows the same drawing."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator):
        self.width, self.height = size
        self.short = min(size)
        self.shape = (self.height, self.width)
        self.rng = rng
        self.x = ((np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2) / self.short)[None, :]
        self.y = ((np.arange(self.height, dtype=np.float32) + 0.5 - self.height / 2) / self.short)[:, None]

    def noise(self, scale: float) -> np.ndarray:
        """Smooth noise of unit variance, (height, width), with bumps of about ``scale`` short sides."""
        rows, columns = (max(2, round(side / self.short / scale)) + 3 for side in self.shape)
        grid = Image.fromarray(self.rng.standard_normal((rows, columns)).astype(np.float32))
        field = np.asarray(grid.resize((self.width, self.height), Image.Resampling.BICUBIC))
        return field / 0.815  # interpolation flattens the grid's unit variance to about this (measured)

    def strokes(self, lines: list[tuple[np.ndarray, float]]) -> np.ndarray:
        """Draw lines, each (points, 2) from the image's centre and a width, as ink in [0, 1], (height, width)."""
        finer = 3  # smooths the edges of hairs that are about a pixel wide
        ink = Image.new("L", (self.width * finer, self.height * finer))
        draw = ImageDraw.Draw(ink)
        for points, width in lines:
            pixels = [tuple(each) for each in (points * self.short + (self.width / 2, self.height / 2)) * finer]
            draw.line(pixels, fill=255, width=max(1, round(width * self.short * finer)), joint="curve")
        return np.asarray(ink.reduce(finer), np.float32) / 255

    def dots(self, depth: np.ndarray, counts: tuple, depths: tuple, radii: tuple, softness: float = 0.35) -> np.ndarray:
        """Draw soft round dots at random places as ink in [0, 1], (height, width).

        The tuples are ranges: of their number, of the lesion's ``depth`` at their centres, and of their radii.
        """
        count, places = int(self.rng.integers(*counts)), []
        for _ in range(40 * count):
            if len(places) == count:
                break
            u, v = self.rng.uniform(0, 1, 2)
            row, column = int(v * self.height), int(u * self.width)
            if depths[0] < depth[row, column] < depths[1]:
                places.append((self.x[0, column], self.y[row, 0]))
        field = np.zeros(self.shape, np.float32)
        for (cx, cy), radius in zip(places, self.rng.uniform(*radii, len(places)), strict=True):
            reach = radius * (1 + softness)
            left, right = np.searchsorted(self.x[0], (cx - reach, cx + reach))
            top, bottom = np.searchsorted(self.y[:, 0], (cy - reach, cy + reach))
            distance = np.hypot(self.x[:, left:right] - cx, self.y[top:bottom] - cy) / radius
            dot = np.clip((1 + softness - distance) / (2 * softness), 0, 1)
            field[top:bottom, left:right] = np.maximum(field[top:bottom, left:right], dot)
        return field


def _step(value: np.ndarray, edge: float, width: float) -> np.ndarray:
    """A smooth step from 0 to 1 around ``edge``."""
    t = np.clip((value - edge) / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _blend(image: np.ndarray, colour: np.ndarray, amount: np.ndarray) -> np.ndarray:
    return image + (colour - image) * amount[..., None]


def _skin(canvas: Canvas) -> np.ndarray:
    """Skin with uneven light, a mottled tone and fine texture, (height, width, 3) in [0, 1]."""
    rng = canvas.rng
    tone = np.array([0.86, 0.67, 0.58]) * np.exp(-rng.uniform(0, 0.45) * np.array([0.5, 0.9, 1.2]))
    tone = tone * (1 + rng.normal(0, 0.04, 3))  # the camera's white balance
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    light = 1 + strength * (np.cos(angle) * canvas.x + np.sin(angle) * canvas.y)
    mottle = 0.02 * canvas.noise(0.35) + 0.015 * canvas.noise(0.08) + 0.012 * canvas.noise(0.02)
    return (tone.astype(np.float32) * (light * (1 + mottle))[..., None]).astype(np.float32)


def _outline(canvas: Canvas, shape: str) -> np.ndarray:
    """The lesion's form: how far inside its border each pixel lies, in radii, (height, width); negative outside."""
    rng = canvas.rng
    radius, ratio, ripple, ragged = (rng.uniform(low, high) for low, high in OUTLINES[shape])
    angle = rng.uniform(0, 2 * np.pi)
    cx, cy = rng.uniform(-0.10, 0.10, 2)
    x, y = canvas.x - cx, canvas.y - cy
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    theta = np.arctan2(across / ratio, along)
    border = np.ones(canvas.shape, np.float32)
    for k in range(2, 9):
        border += (ripple * rng.normal() / (k - 1) ** 0.6) * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
    border += ragged * canvas.noise(0.05) + 0.5 * ragged * canvas.noise(0.02)
    return np.maximum(border, 0.25) - np.hypot(along, across / ratio) / radius


def _network(canvas: Canvas, period: float, warp: float) -> np.ndarray:
    """A honeycomb of lines in [0, 1]: three plane waves at 60 degrees, bent by ``warp`` periods of noise."""
    turn = canvas.rng.uniform(0, np.pi)
    u = canvas.x + warp * period * canvas.noise(0.12)
    v = canvas.y + warp * period * canvas.noise(0.12)
    angles = (turn + k * np.pi / 3 for k in range(3))
    waves = sum(np.cos(2 * np.pi / period * (np.cos(angle) * u + np.sin(angle) * v)) for angle in angles)
    return 1 - _step(waves / 3, 0.0, 0.7)


def _paint_nevus(canvas: Canvas, image: np.ndarray, depth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    rng = canvas.rng
    density = rng.uniform(0.5, 1.5) * (1 + 0.08 * canvas.noise(0.15))
    if rng.random() < 0.5:  # a second brown, concentric
        density = density * (1 + rng.uniform(-0.3, 0.45) * _step(depth, rng.uniform(0.35, 0.6), 0.25))
    if rng.random() < 0.75:
        lines = _network(canvas, rng.uniform(0.028, 0.05), warp=0.25)
        density = density * (1 + rng.uniform(0.3, 0.8) * (lines - 0.5))
    if rng.random() < 0.3:
        density = density + 0.5 * canvas.dots(depth, (6, 25), (0.1, 0.9), (0.008, 0.014))
    return image * np.exp(-(inside * density)[..., None] * MELANIN)


def _paint_melanoma(canvas: Canvas, image: np.ndarray, depth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    rng = canvas.rng
    patches = canvas.noise(0.18)
    density = rng.uniform(0.5, 1.3) * (0.65 + 0.7 * _step(patches, 0, 1.0) + 0.1 * canvas.noise(0.05))
    density = density + rng.uniform(0.2, 0.9) * _step(canvas.noise(0.16), rng.uniform(0.6, 1.1), 0.7)  # dark blotches
    if rng.random() < 0.65:  # an atypical network: broken, uneven, in a part only
        lines = _network(canvas, rng.uniform(0.045, 0.08), warp=1.2)
        density = density * (1 + rng.uniform(0.4, 1.0) * (lines - 0.5) * _step(canvas.noise(0.25), 0, 0.5))
    if rng.random() < 0.5:
        density = density + 0.8 * canvas.dots(depth, (5, 30), (-0.02, 0.5), (0.005, 0.016))
    painted = image * np.exp(-(inside * density)[..., None] * MELANIN)
    for colour, chance, strength in ((VEIL, 0.45, 0.6), (RED, 0.35, 0.45), (WHITE, 0.35, 0.5)):
        if rng.random() < chance:
            patch = _step(canvas.noise(0.22), rng.uniform(0.4, 0.9), 1.0)
            painted = _blend(painted, colour, strength * rng.uniform(0.5, 1) * inside * patch * _step(depth, 0.15, 0.2))
    return painted


def _paint_keratosis(canvas: Canvas, image: np.ndarray, depth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    rng = canvas.rng
    tint = MELANIN + (WAX - MELANIN) * rng.uniform(0, 1)
    relief = canvas.noise(0.06)
    density = rng.uniform(0.4, 1.5) * (1 + 0.12 * canvas.noise(0.2) + 0.1 * relief)
    if rng.random() < 0.4:  # fissures between ridges, as on a brain
        density = density + rng.uniform(0.3, 0.7) * (1 - _step(np.abs(canvas.noise(0.07)), 0.12, 0.25))
    painted = image * np.exp(-(inside * density)[..., None] * tint)
    # Wax: the relief, lit from one side.
    painted = painted * (1 + 0.25 * np.gradient(relief, axis=1)[..., None] * canvas.short / 192 * inside[..., None])
    if rng.random() < 0.85:
        dots = canvas.dots(depth, (4, 26), (0.08, 2), (0.007, 0.018))
        painted = _blend(painted, np.array([0.93, 0.88, 0.74], np.float32), rng.uniform(0.45, 0.85) * dots)
    if rng.random() < 0.75:
        dots = canvas.dots(depth, (3, 16), (0.08, 2), (0.010, 0.026), softness=0.2)
        painted = _blend(painted, np.array([0.23, 0.14, 0.09], np.float32), rng.uniform(0.5, 0.9) * dots)
    return painted


PAINTERS = {"melanoma": _paint_melanoma, "nevus": _paint_nevus, "seborrheic_keratosis": _paint_keratosis}


def _hairs(canvas: Canvas, image: np.ndarray) -> np.ndarray:
    rng = canvas.rng
    if rng.random() < 0.45:
        return image
    lines = []
    for _ in range(int(rng.integers(1, 18))):
        start, bend = rng.uniform(-0.75, 0.75, 2), rng.normal(0, 0.12, 2)
        heading, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.1)
        end = start + length * np.array([np.cos(heading), np.sin(heading)])
        t = np.linspace(0, 1, 24)[:, None]
        middle = (start + end) / 2 + bend
        points = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
        lines.append((points, rng.uniform(0.003, 0.008)))
    colour = np.array([0.16, 0.11, 0.09], np.float32) * rng.uniform(0.6, 2.2)
    return _blend(image, colour, rng.uniform(0.55, 0.95) * canvas.strokes(lines))


def _ruler(canvas: Canvas, image: np.ndarray) -> np.ndarray:
    rng = canvas.rng
    if rng.random() > 0.15:
        return image
    spacing, turned = rng.uniform(0.05, 0.08), rng.random() < 0.5
    half = (canvas.height if turned else canvas.width) / canvas.short / 2
    edge = (canvas.width if turned else canvas.height) / canvas.short / 2 * rng.choice((-1, 1))
    ticks = []
    for number, place in enumerate(np.arange(-half, half, spacing)):
        inner = edge - np.sign(edge) * (0.10 if number % 5 == 0 else 0.06)
        tick = np.array([[place, edge], [place, inner]])
        ticks.append((tick[:, ::-1] if turned else tick, 0.006))
    return _blend(image, np.array([0.1, 0.1, 0.12], np.float32), 0.85 * canvas.strokes(ticks))


def _bubbles(canvas: Canvas, image: np.ndarray) -> np.ndarray:
    rng = canvas.rng
    if rng.random() > 0.25:
        return image
    for _ in range(int(rng.integers(1, 6))):
        (cx, cy), radius = rng.uniform(-0.6, 0.6, 2), rng.uniform(0.015, 0.07)
        distance = np.hypot(canvas.x - cx, canvas.y - cy) / radius
        rim = np.exp(-(((distance - 1) / 0.10) ** 2))
        glint = np.exp(-((np.hypot(canvas.x - cx + 0.4 * radius, canvas.y - cy + 0.4 * radius) / (0.25 * radius)) ** 2))
        image = _blend(image, np.ones(3, np.float32), np.clip(0.35 * rim + 0.7 * glint, 0, 1))
    return image


def _optics(canvas: Canvas, image: np.ndarray) -> np.ndarray:
    """Vignette, dark corners, exposure, a little blur and the sensor's noise."""
    rng = canvas.rng
    distance = np.hypot(canvas.x, canvas.y)
    image = image * (1 - rng.uniform(0, 0.35) * np.clip(distance, 0, 1) ** 2)[..., None]
    if rng.random() < 0.3:
        image = image * (1 - 0.95 * _step(distance, rng.uniform(0.52, 0.66), 0.04))[..., None]
    image = image * rng.uniform(0.75, 1.12) * (1 + rng.normal(0, 0.03, 3)).astype(np.float32)
    image = gaussian(image, sigma=rng.uniform(0.0005, 0.003) * canvas.short, channel_axis=2)
    return image + rng.normal(0, 0.012, (*canvas.shape, 1)).astype(np.float32)


def draw_image(label: str, rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Image.Image:
    """Draw one lesion of a class of ``CLASSES``, (width, height) of at least 32 pixels; any size shows the same one."""
    canvas = Canvas(size, rng)
    shape, texture, fade = label, label, label
    if rng.random() < BORROWED:
        other = str(rng.choice([name for name in CLASSES if name != label]))
        shape, texture, fade = ((other, label, other), (label, other, label), (label, label, other))[rng.integers(3)]
    image = _skin(canvas)
    depth = _outline(canvas, shape)
    inside = _step(depth, 0, rng.uniform(*FADES[fade]))
    image = PAINTERS[texture](canvas, image, depth, inside)
    for overlay in (_bubbles, _hairs, _ruler, _optics):
        image = overlay(canvas, image)
    return Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))


def _draw_job(job: tuple) -> None:
    file, label, key, size = job
    draw_image(label, np.random.default_rng(key), size).save(file, quality=90)


def draw_sample(folder: str | os.PathLike, counts: dict = COUNTS, size: tuple = SIZE, seed: int = 0) -> None:
    """Draw a whole data folder ``{train,valid,test}/{melanoma,nevus,seborrheic_keratosis}/*.jpg``.

    ``counts`` are the images of each class for each split, ``size`` is width and height. The same arguments give the
    same bytes with the same versions of the libraries. The folder appears complete or not at all; FileExistsError if it
    exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: exists already; delete it or name another folder.")
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    jobs = [
        # Each image has its own seed, so neither the order nor the number of processes matters.
        (partial / split / label / f"DRAWN_{s}{c}{number:05d}.jpg", label, (seed, s, c, number), size)
        for s, split in enumerate(SPLITS)
        for c, label in enumerate(CLASSES)
        for number in range(counts[split][c])
    ]
    for parent in {job[0].parent for job in jobs}:
        parent.mkdir(parents=True)
    try:
        with ProcessPoolExecutor() as pool:
            list(progress(pool.map(_draw_job, jobs, chunksize=8), total=len(jobs), desc=f"drawing {folder}"))
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.sample``; returns the exit code."""
    parser = Parser(prog="python -m derma.sample", description="Draw a data folder of dermoscopy-like images.")
    parser.add_argument("folder", nargs="?", default="data/sample", type=Path, help="must be new; default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        draw_sample(options.folder)
    except OSError as error:
        message = f"{options.folder}: cannot be made ({error.strerror or error}); name another folder."
        print(error if isinstance(error, FileExistsError) else message, file=sys.stderr)
        return 2
    print(f"Drew {sum(map(sum, COUNTS.values()))} images into {options.folder}.")
    return 0


if __name__ == "__main__":
    run_main(main)
