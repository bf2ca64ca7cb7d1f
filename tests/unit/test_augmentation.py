import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from derma.augmentation import BlankMiddle, RandomLight, RandomView, relight
from derma.sample import draw_picture


@pytest.fixture(scope="module")
def picture():
    return draw_picture("melanoma", np.random.default_rng(3), (240, 240))


def difference(first, second):
    return np.abs(np.asarray(first, float) - np.asarray(second, float)).mean()


def test_without_ranges_a_view_is_one_of_the_four_flips(picture):
    view = RandomView(240, degrees=0, shear=0, scale=(1, 1), ratio=(1, 1))
    flips = [np.asarray(picture)[::a, ::b] for a in (1, -1) for b in (1, -1)]
    torch.manual_seed(0)
    nearest = [int(np.argmin([difference(view(picture), flip) for flip in flips])) for _ in range(40)]
    assert set(nearest) == {0, 1, 2, 3}
    assert min(difference(view(picture), flip) for flip in flips) == 0


def test_a_turn_is_torchvisions(picture, monkeypatch):
    monkeypatch.setattr("derma.augmentation._uniform", lambda low, high: high)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.9))  # no flip
    view = RandomView(240, degrees=30, shear=0, scale=(1, 1), ratio=(1, 1))
    expected = functional.rotate(picture, 30, v2.InterpolationMode.BILINEAR)
    assert difference(view(picture), expected) < 0.5


def test_a_crop_is_torchvisions(picture, monkeypatch):
    monkeypatch.setattr("derma.augmentation._uniform", lambda low, high: high)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.9))
    view = RandomView(120, degrees=0, shear=0, scale=(0.25, 0.25), ratio=(1, 1))
    assert difference(view(picture), np.asarray(picture)[120:, 120:]) == 0


def test_views_have_the_areas_and_ratios_asked_for():
    view = RandomView(100, scale=(0.4, 1.0), ratio=(0.8, 1.25))
    torch.manual_seed(0)
    sizes = np.array([view._crop(200) for _ in range(2000)])
    areas, ratios = sizes.prod(axis=1) / 200**2, sizes[:, 0] / sizes[:, 1]
    assert areas.min() >= 0.4 and areas.max() <= 1
    assert ratios.min() >= 0.8 and ratios.max() <= 1.25
    torch.manual_seed(0)
    crop, square = v2.RandomResizedCrop(100, (0.4, 1), (0.8, 1.25)), [torch.zeros(3, 200, 200)]
    theirs = [crop.make_params(square) for _ in range(2000)]
    expected = np.array([each["height"] * each["width"] for each in theirs]) / 200**2
    assert areas.mean() == pytest.approx(expected.mean(), abs=0.01)
    assert areas.std() == pytest.approx(expected.std(), abs=0.01)


@pytest.mark.parametrize(
    ("factors", "theirs"),
    [
        ((1.2, 1, 1, 0), lambda p: functional.adjust_brightness(p, 1.2)),
        ((1, 0.8, 1, 0), lambda p: functional.adjust_contrast(p, 0.8)),
        ((1, 1, 0.7, 0), lambda p: functional.adjust_saturation(p, 0.7)),
        ((0.8, 1.2, 1, 0), lambda p: functional.adjust_contrast(functional.adjust_brightness(p, 0.8), 1.2)),
    ],
)
def test_light_is_torchvisions(picture, factors, theirs):
    assert difference(relight(picture, *factors), theirs(picture)) < 1


def test_hue_keeps_greys_and_turns_colours():
    grey = Image.new("RGB", (4, 4), (90, 90, 90))
    assert relight(grey, 1, 1, 1, 0.3).getpixel((0, 0)) == (90, 90, 90)
    red = Image.new("RGB", (4, 4), (200, 20, 20))
    assert relight(red, 1, 1, 1, 1 / 3).getpixel((0, 0)) == pytest.approx((20, 200, 20), abs=1)


def test_nothing_changes_without_ranges(picture):
    assert difference(RandomLight()(picture), picture) == 0


def test_the_same_seed_gives_the_same_picture(picture):
    augment = v2.Compose([RandomView(96), RandomLight(0.25, 0.25, 0.25, 0.03)])
    made = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        made.append(np.asarray(augment(picture)))
    assert (made[0] == made[1]).all()
    assert (made[0] != made[2]).any()
    assert "RandomView(96" in repr(augment) and "hue=0.03" in repr(augment)


def test_a_blanked_middle_leaves_the_rest(picture):
    pixels, blanked = np.asarray(picture), np.asarray(BlankMiddle(0.5)(picture))
    middle = np.zeros((240, 240), bool)
    middle[60:180, 60:180] = True
    assert np.array_equal(blanked[~middle], pixels[~middle])
    assert np.allclose(blanked[middle], pixels[~middle].mean(0), atol=0.51)
    other = pixels.copy()
    other[middle] = 255 - other[middle]  # whatever was there, nothing of it is left
    assert np.array_equal(np.asarray(BlankMiddle(0.5)(Image.fromarray(other))), blanked)
    assert (np.asarray(BlankMiddle(0.999)(Image.fromarray(pixels[:2, :2]))) == pixels[:2, :2]).any()
