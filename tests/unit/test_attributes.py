import numpy as np
import pytest
from PIL import Image, ImageDraw

from derma.attributes import auc_by_group, dark_corners, lesion_share, scale_shown
from derma.scoring import delong

SKIN, LESION = (220, 180, 160), (110, 70, 60)


def drawn(radius, corners=False, side=128):
    """A round lesion on noisy skin; in a round field of view if ``corners``."""
    image, middle = Image.new("RGB", (side, side), SKIN), side / 2
    ImageDraw.Draw(image).circle((middle, middle), radius, fill=LESION)
    pixels = np.asarray(image) + np.random.default_rng(0).normal(0, 6, (side, side, 3))
    if corners:
        places = np.arange(side) - middle + 0.5
        pixels[places[:, None] ** 2 + places**2 > (0.55 * side) ** 2] = 10
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("corners", [False, True])
def test_lesions_and_dark_corners_are_measured(corners):
    visible = (np.hypot(*np.mgrid[-63.5:64, -63.5:64]) <= 0.55 * 128).mean() if corners else 1
    for radius in (12, 30, 45):
        expected = np.pi * radius**2 / 128**2 / visible
        assert lesion_share(drawn(radius, corners)) == pytest.approx(expected, rel=0.15, abs=0.01)
        assert dark_corners(drawn(radius, corners)) == corners
    assert lesion_share(Image.new("RGB", (64, 64), SKIN)) == lesion_share(Image.new("RGB", (64, 64))) == 0


def with_line(spacing):
    """Draw a slanted line below a lesion, with ticks if spacing is not 0; smooth, as a camera sees it."""
    image, mask = drawn(30, side=256), Image.new("L", (1024, 1024))
    pen = ImageDraw.Draw(mask)
    pen.line([312, 820, 712, 780], fill=255, width=7)
    for place in range(0, 401, 4 * spacing) if spacing else ():
        pen.line([312 + place, 820 - place / 10, 315 + place, 848 - place / 10], fill=255, width=4)
    image.paste((60, 50, 50), mask=mask.resize(image.size, Image.Resampling.BOX))
    return image


def test_a_scale_is_a_straight_line_with_ticks():
    assert all(scale_shown(with_line(spacing)) for spacing in (6, 8, 12)) and not scale_shown(with_line(0))
    assert scale_shown(with_line(10).resize((1024, 768), Image.Resampling.BICUBIC))


def test_auc_by_group(tmp_path):
    paths, targets = [str(tmp_path / f"{number}.png") for number in range(12)], np.arange(12) % 3
    for number, path in enumerate(paths):
        drawn(12 + 3 * number, corners=number < 6).save(path)
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 12)
    table = auc_by_group(paths, targets, probabilities)
    assert table["images"].tolist() == [4, 4, 4, 6, 6, 0, 12]
    assert table.index[0].startswith("small lesion (up to") and table.index[3] == "dark corners"
    area = delong(targets[:6] == 2, probabilities[:6, 2])
    found = table.loc["dark corners", ["keratoses", "AUC of keratoses", "keratoses low", "keratoses high"]]
    assert found.tolist() == [2, area.value, area.low, area.high]
    assert np.isnan(table.loc["scale", "AUC of melanomas"])
