import numpy as np
import pytest
from PIL import Image, ImageDraw

from derma.attributes import auc_by_group, dark_corners, lesion_share, scale_shown
from derma.scoring import delong


def drawn(radius, corners=False, side=128):
    """A round lesion on noisy skin; in a round field of view if ``corners``."""
    image = Image.new("RGB", (side, side), (220, 180, 160))
    ImageDraw.Draw(image).circle((side / 2, side / 2), radius, fill=(110, 70, 60))
    pixels = np.asarray(image) + np.random.default_rng(0).normal(0, 6, (side, side, 3))
    if corners:
        pixels[np.hypot(*(np.mgrid[:side, :side] - side / 2 + 0.5)) > 0.55 * side] = 10
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("corners", [False, True])
def test_lesions_and_dark_corners_are_measured(corners):
    visible = (np.hypot(*np.mgrid[-63.5:64, -63.5:64]) <= 0.55 * 128).sum() if corners else 128**2
    for radius in (12, 30, 45):
        expected = np.pi * radius**2 / visible
        assert lesion_share(drawn(radius, corners)) == pytest.approx(expected, rel=0.15, abs=0.01)
        assert dark_corners(drawn(radius, corners)) == corners
    assert lesion_share(Image.new("RGB", (64, 64), "white")) == lesion_share(Image.new("RGB", (64, 64))) == 0


@pytest.mark.parametrize("ticks", [0, 9, 13, 17])
def test_a_scale_is_a_straight_line_with_ticks(ticks):
    image, mask = drawn(30, side=256), Image.new("L", (1024, 1024))
    ImageDraw.Draw(mask).line([312, 820, 712, 780], fill=255, width=7)
    for x in np.linspace(312, 712, ticks):
        ImageDraw.Draw(mask).line([x, 851.2 - x / 10, x + 3, 879.2 - x / 10], fill=255, width=4)
    image.paste((60, 50, 50), mask=mask.resize(image.size, Image.Resampling.BOX))  # smooth, as a camera sees it
    for size in ((256, 256), (1024, 768)):
        assert scale_shown(image.resize(size, Image.Resampling.BICUBIC)) == (ticks > 0)


def test_auc_by_group(tmp_path):
    paths, targets = [str(tmp_path / f"{number}.png") for number in range(12)], np.arange(12) % 3
    for number, path in enumerate(paths):
        drawn(12 + 3 * number, corners=number < 6).save(path)
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 12)
    table = auc_by_group(paths, targets, probabilities)
    assert table["images"].tolist() == [4, 4, 4, 6, 6, 0, 12] and table.index[0].startswith("small lesion (up to")
    area, found = delong(targets[:6] == 2, probabilities[:6, 2]), table.loc["dark corners"]
    assert (found["keratoses"], found["AUC of keratoses"], found["keratoses low"]) == (2, area.value, area.low)
    assert np.isnan(table.loc["scale", "AUC of melanomas"])
