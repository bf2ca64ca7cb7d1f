import numpy as np
import pytest
from PIL import Image, ImageDraw

from derma.attributes import dark_corners, lesion_share, scale_shown

SKIN, LESION = (220, 180, 160), (110, 70, 60)


def drawn(radius, corners=False, side=128):
    """A round lesion on skin with some noise; in a round field of view if asked for."""
    picture = Image.new("RGB", (side, side), SKIN)
    pen = ImageDraw.Draw(picture)
    middle = side / 2
    pen.ellipse([middle - radius, middle - radius, middle + radius, middle + radius], fill=LESION)
    pixels = np.asarray(picture) + np.random.default_rng(0).normal(0, 6, (side, side, 3))
    if corners:
        places = np.arange(side) - middle + 0.5
        pixels[places[:, None] ** 2 + places**2 > (0.55 * side) ** 2] = 10
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("radius", [12, 30, 45])
def test_the_share_of_a_round_lesion(radius, corners):
    visible = (np.hypot(*np.mgrid[-63.5:64, -63.5:64]) <= 0.55 * 128).mean() if corners else 1
    expected = np.pi * radius**2 / 128**2 / visible
    assert lesion_share(drawn(radius, corners)) == pytest.approx(expected, rel=0.15, abs=0.01)


def test_dark_corners_are_those_of_a_round_field_and_no_lesion():
    assert dark_corners(drawn(20, corners=True))
    assert not dark_corners(drawn(20)) and not dark_corners(drawn(45))


def test_a_picture_without_contrast_has_no_lesion():
    assert lesion_share(Image.new("RGB", (64, 64), SKIN)) == 0
    assert lesion_share(Image.new("RGB", (64, 64))) == 0  # all of it dark


def with_line(picture, spacing, angle, ink=(60, 50, 50)):
    """Draw a line of 100 pixels below the lesion, with ticks if spacing is not 0; smooth, as a camera sees it."""
    mask = Image.new("L", (1024, 1024))
    pen, along = ImageDraw.Draw(mask), 4 * np.array([np.cos(angle), np.sin(angle)])
    across = np.array([along[1], -along[0]])
    start = np.array([512, 800]) - 50 * along
    pen.line([*start, *(start + 100 * along)], fill=255, width=7)
    for place in range(0, 101, spacing) if spacing else ():
        pen.line([*(start + place * along), *(start + place * along + 7 * across)], fill=255, width=4)
    picture.paste(ink, mask=mask.resize(picture.size, Image.Resampling.BOX))
    return picture


@pytest.mark.parametrize("ink", [(60, 50, 50), (170, 140, 125)])
@pytest.mark.parametrize("angle", [0, 0.2, -0.5])
def test_a_scale_is_a_straight_line_with_ticks(angle, ink):
    for spacing in (6, 8, 10, 12):
        assert scale_shown(with_line(drawn(30, side=256), spacing, angle, ink)), spacing
    assert not scale_shown(with_line(drawn(30, side=256), 0, angle, ink))
    assert not scale_shown(drawn(30, side=256)) and not scale_shown(Image.new("RGB", (64, 64)))


def test_a_scale_is_found_in_a_large_picture_too():
    assert scale_shown(with_line(drawn(30, side=256), 10, 0.1).resize((1024, 768), Image.Resampling.BICUBIC))


def hairy(rng):
    """Draw 25 hairs, some of them nearly straight, over a lesion; smooth, as a camera sees them."""
    picture, mask = drawn(40, side=256), Image.new("L", (1024, 1024))
    for _ in range(25):
        start, turn, bend = rng.uniform(0, 1024, 2), rng.uniform(0, 2 * np.pi), rng.uniform(-1.5, 1.5)
        course = turn + bend * np.linspace(0, 1, 120)
        points = start + np.cumsum(4 * np.stack([np.cos(course), np.sin(course)], axis=1), axis=0)
        ImageDraw.Draw(mask).line([tuple(point) for point in points], fill=255, width=7)
    picture.paste((70, 50, 40), mask=mask.resize(picture.size, Image.Resampling.BOX))
    return picture


def test_hairs_are_seldom_taken_for_a_scale():
    rng = np.random.default_rng(0)
    assert sum(scale_shown(hairy(rng)) for _ in range(20)) <= 4
