import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from derma.augmentation import RandomWarp, change_color, views
from derma.sample import draw_image


@pytest.fixture(scope="module")
def image():
    return draw_image("melanoma", np.random.default_rng(3), (240, 240))


def difference(first, second):
    return np.abs(np.asarray(first, float) - np.asarray(second, float)).mean()


def test_without_ranges_a_warp_is_one_of_the_four_flips(image):
    warp = RandomWarp(240, degrees=0, shear=0, scale=(1, 1), ratio=(1, 1))
    flips = [np.asarray(image)[::a, ::b] for a in (1, -1) for b in (1, -1)]
    torch.manual_seed(0)
    nearest = [int(np.argmin([difference(warp(image), flip) for flip in flips])) for _ in range(40)]
    assert set(nearest) == {0, 1, 2, 3}
    assert min(difference(warp(image), flip) for flip in flips) == 0


def test_turns_and_crops_are_torchvisions(image, monkeypatch):
    monkeypatch.setattr("derma.augmentation._uniform", lambda low, high: high)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.9))  # no flip
    turned = RandomWarp(240, degrees=30, shear=0, scale=(1, 1), ratio=(1, 1))(image)
    assert difference(turned, functional.rotate(image, 30, v2.InterpolationMode.BILINEAR)) < 0.5
    cropped = RandomWarp(120, degrees=0, shear=0, scale=(0.25, 0.25), ratio=(1, 1))(image)
    assert difference(cropped, np.asarray(image)[120:, 120:]) == 0


def test_crops_have_the_areas_and_ratios_asked_for():
    torch.manual_seed(0)
    warp = RandomWarp(100, 180, 10, scale=(0.4, 1.0), ratio=(0.8, 1.25))
    sizes = np.array([warp._crop(200) for _ in range(2000)])
    areas, ratios = sizes.prod(axis=1) / 200**2, sizes[:, 0] / sizes[:, 1]
    assert areas.min() >= 0.4 and areas.max() <= 1 and ratios.min() >= 0.8 and ratios.max() <= 1.25
    crop, square = v2.RandomResizedCrop(100, (0.4, 1), (0.8, 1.25)), [torch.zeros(3, 200, 200)]
    expected = np.array([each["height"] * each["width"] for each in (crop.make_params(square) for _ in range(2000))])
    assert areas.mean() == pytest.approx(expected.mean() / 200**2, abs=0.01)


@pytest.mark.parametrize(
    ("factors", "theirs"),
    [
        ((1.2, 1, 1, 0), lambda p: functional.adjust_brightness(p, 1.2)),
        ((1, 0.8, 1, 0), lambda p: functional.adjust_contrast(p, 0.8)),
        ((1, 1, 0.7, 0), lambda p: functional.adjust_saturation(p, 0.7)),
        ((1, 1, 1, 0), lambda p: p),
    ],
)
def test_colour_is_torchvisions(image, factors, theirs):
    assert difference(change_color(image, *factors), theirs(image)) < 1


def test_hue_keeps_greys_and_turns_colours():
    grey, red = (Image.new("RGB", (4, 4), colour) for colour in ((90, 90, 90), (200, 20, 20)))
    assert change_color(grey, 1, 1, 1, 0.3).getpixel((0, 0)) == (90, 90, 90)
    assert change_color(red, 1, 1, 1, 1 / 3).getpixel((0, 0)) == pytest.approx((20, 200, 20), abs=1)


def test_views_are_the_eight_flips_and_turns_or_what_was_computed_of_them():
    batch = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    assert len({tuple(view.flatten().tolist()) for view in views(batch, True)}) == 8
    assert [view is batch for view in views(batch, False)] == [True]
    features = torch.rand(2, 8, 5)
    assert torch.equal(torch.stack(views(features, False), 1), features)
