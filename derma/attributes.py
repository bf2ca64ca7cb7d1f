"""What can be measured of a dermoscopic image without a label: the lesion's size, dark corners, a printed scale.

All are rough: use them for groups of images, not for a single one.
"""

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter1d, map_coordinates
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label
from skimage.morphology import closing, disk
from skimage.transform import probabilistic_hough_line

from derma.commands import progress
from derma.dataset import load_square
from derma.scoring import Estimate, delong

DARK = 0.2  # of full brightness: skin is brighter, the surroundings of a round field of view are darker
LIKELY = 0.22  # least likeness of a scale
SIDE = 256  # of the square in which scales are searched, pixels
ANGLES = np.linspace(-np.pi / 2, np.pi / 2, 180, endpoint=False)


def _brightness(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), np.float64) / 255


def _field(brightness: np.ndarray) -> np.ndarray:
    """Return (H, W) bool: all but the dark that is connected to a corner."""
    parts = label(brightness < DARK, connectivity=1)
    corners = {parts[row, column] for row in (0, -1) for column in (0, -1)} - {0}
    return ~np.isin(parts, list(corners))


def lesion_share(image: Image.Image) -> float:
    """Return the share of an RGB image's visible area that the lesion takes, from 0 to 1.

    The lesion is what is darker than Otsu's threshold (1979, https://doi.org/10.1109/TSMC.1979.4310076) after
    smoothing: the connected part with the greatest weight, where pixels near the centre weigh more.
    docs/model_card.md says how often it is right. Pale lesions, ink and lesions that fill the image mislead it.
    """
    brightness = _brightness(image)
    field = _field(brightness)
    smooth = gaussian(brightness, sigma=max(image.size) / 64)
    if field.sum() < 2 or np.ptp(smooth[field]) == 0:
        return 0.0
    parts = label((smooth < threshold_otsu(smooth[field])) & field)
    rows, columns = (np.linspace(-1, 1, side) for side in brightness.shape)
    nearness = np.exp(-6 * (rows[:, None] ** 2 + columns**2))
    weights = np.bincount(parts.ravel(), weights=nearness.ravel())
    weights[0] = 0
    return float((parts == weights.argmax()).sum() / field.sum()) if len(weights) > 1 else 0.0


def dark_corners(image: Image.Image) -> bool:
    """Return whether at least 0.3 % of an RGB image is dark and connected to a corner, as around a round field."""
    return bool((~_field(_brightness(image))).mean() >= 0.003)


def _tick_share(profile: np.ndarray) -> float:
    """Return the share of a profile's spectral power at its strongest period, of about 4 to 13 pixels."""
    profile = profile - gaussian_filter1d(profile, 8)
    power = np.abs(np.fft.rfft((profile - profile.mean()) * np.hanning(len(profile)), n=512)) ** 2
    frequency = np.fft.rfftfreq(512)
    ticks = np.where((frequency > 1 / 16) & (frequency < 1 / 4), power, 0)
    peak = ticks.argmax()
    return float(ticks[max(0, peak - 3) : peak + 4].sum() / (power.sum() + 1e-9))


def _likeness(segment: tuple, thin: np.ndarray, without: np.ndarray) -> float:
    """Return how much a segment ((x0, y0), (x1, y1)) looks like a scale, from 0 to 1.

    ``thin`` is what is dark and thin in the image, ``without`` the image without it, both (H, W).
    """
    start, end = (np.array(point[::-1], float) for point in segment)  # row, column
    length = np.linalg.norm(end - start)
    along = np.linspace(start, end, int(length)).T
    across = np.array([[end[1] - start[1]], [start[0] - end[0]]]) / length
    profiles = np.stack([map_coordinates(thin, along + k * across, order=1, mode="nearest") for k in range(-6, 7)])
    ticks = max(_tick_share(profiles[1:4].mean(0)), _tick_share(profiles[9:12].mean(0)))
    stroke = np.median(profiles[5:8].max(0))  # 0 where the segment is mostly gaps
    quiet = 1 - min(np.median(profiles[:4]), np.median(profiles[9:])) / max(stroke, 1e-9)
    under = map_coordinates(without, along, order=1)  # skin is even, a lesion's texture lies on uneven ground
    return ticks * max(0, quiet) * max(0, 1 - 2 * under.std() / max(under.mean(), 1e-9))


def scale_shown(image: Image.Image) -> bool:
    """Return whether a millimetre scale, a straight line with ticks along it, is printed in an RGB image.

    Candidates are straight lines of at least 0.3 of the side (probabilistic Hough transform: Matas et al., 2000,
    https://doi.org/10.1006/cviu.1999.0831) in what is dark and thin (black top-hat).

    The limit was set on 300 training images of ISIC 2017; docs/model_card.md says how often it is right on others.
    Hairs and the texture of large lesions mislead it. Rulers of which only the ticks at the image's edge show do not
    count and are seldom found.
    """
    brightness = _brightness(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    without = closing(brightness, disk(3))
    thin = (without - brightness) / max(np.median(brightness), 1e-3)
    segments = probabilistic_hough_line(
        thin > 0.05, threshold=40, line_length=int(0.3 * SIDE), line_gap=3, theta=ANGLES, rng=0
    )
    return any(_likeness(each, thin, without) >= LIKELY for each in segments)


def auc_by_group(paths: list[str], targets: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Measure melanoma and keratosis, each against the rest, in groups by lesion size, dark corners and printed scale.

    Args:
        paths: N image files.
        targets: (N,) class indices, 0 melanoma, 1 nevus, 2 seborrheic keratosis.
        probabilities: (N, 3).

    Returns:
        A row for each group: number of ``images``, of ``melanomas`` and ``keratoses``, and the AUC of each with
        DeLong's interval ``low`` and ``high``; NaN where a group has no or only such images.
    """
    squares = [load_square(path, 128) for path in paths]
    share, dark = np.array([(lesion_share(square), dark_corners(square)) for square in squares]).T
    dark, scale = dark == 1, np.array([scale_shown(load_square(path, SIDE)) for path in progress(paths, desc="scales")])
    small, large = np.quantile(share, (1 / 3, 2 / 3))
    groups = {
        f"small lesion (up to {small:.0%} of the image)": share <= small,
        "medium lesion": (share > small) & (share <= large),
        f"large lesion (more than {large:.0%})": share > large,
    }
    groups |= {"dark corners": dark, "no dark corners": ~dark, "scale": scale, "no scale": ~scale}
    rows = {}
    for group, chosen in groups.items():
        rows[group] = {"images": int(chosen.sum())}
        for k, name in ((0, "melanomas"), (2, "keratoses")):
            positive = targets[chosen] == k
            defined = 0 < positive.sum() < len(positive)
            area = delong(positive, probabilities[chosen, k]) if defined else Estimate(np.nan, np.nan, np.nan)
            rows[group] |= {name: int(positive.sum()), f"AUC of {name}": area.value}
            rows[group] |= {f"{name} low": area.low, f"{name} high": area.high}
    return pd.DataFrame.from_dict(rows, orient="index")
