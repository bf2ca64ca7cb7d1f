"""Find pictures that show one photograph: exact copies, and near ones (re-compressed, recoloured, flipped, cropped).

Two measures in turn. A coarse one proposes: thumbnails of 16 x 16 grey values, reduced to 16 numbers, whose nearest
neighbours a k-d tree finds in n log n, in all eight orientations of a picture. A fine one decides: the normalised
cross-correlation (Lewis, 1995) of the pictures' fine detail - hairs, texture, the border's jags - over small shifts;
first at 64 x 64 pixels, where most pairs drop out, then at 128 x 128 and over small changes of scale. Two lesions that
merely look alike agree in the coarse and not in the fine.

On the 2,750 images of ISIC 2017 part 3 this keeps 49 pairs, which agree by 0.59 and more. They were looked at one by
one: each shows one lesion, 48 of them in one photograph.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import fft
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from derma.dataset import load_image

SIDE = 128  # of the pictures that the fine measure compares
COARSE = 16  # side of the thumbnails, and numbers kept of each
NEIGHBOURS = 12  # looked at for each picture and orientation
MOST_PROPOSED = 12  # of those, for each picture: the most alike
LEAST_COARSE = 0.65  # correlation of the coarse thumbnails, below which no pair is proposed
SURE_COARSE = 0.88  # below which the fine measure must be sure: cropped copies, but also lesions beside one ruler
LEAST_HALF = 0.25  # correlation of the detail at half the size, below which no pair is looked at more closely
LEAST_FINE = 0.55  # correlation of the fine detail from which a pair is one photograph, or may be
SURE_FINE = 0.64  # from which it is; below, smooth lesions on clean skin may agree by their outlines alone
SCALES = (0.92, 0.96, 1.0, 1.04, 1.08)
MOST_SHIFT = 12  # pixels of SIDE


def orient(pictures: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (..., H, W) pictures by ``orientation % 4`` quarter turns, from 4 on mirrored first."""
    mirrored = pictures[..., ::-1] if orientation >= 4 else pictures
    return np.rot90(mirrored, orientation % 4, axes=(-2, -1))


def thumbnail(file: str | os.PathLike) -> np.ndarray:
    """Return a picture as (SIDE, SIDE) grey values from 0 to 255 (uint8), squeezed to a square."""
    return np.asarray(load_image(file, SIDE).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def _unit(vectors: np.ndarray) -> np.ndarray:
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)


def propose(thumbnails: np.ndarray) -> pd.DataFrame:
    """Return pairs that look alike from afar.

    Args:
        thumbnails: (N, SIDE, SIDE) grey values.

    Returns:
        Columns ``first`` < ``second`` (positions), ``orientation`` (of the second, to match the first) and ``coarse``
        (their correlation).
    """
    blocks = thumbnails.reshape(len(thumbnails), COARSE, SIDE // COARSE, COARSE, SIDE // COARSE).mean(axis=(2, 4))
    flat = _unit(blocks.reshape(len(blocks), -1))
    # Principal axes of all orientations together, so that one tree serves them all.
    everything = np.concatenate([_unit(orient(blocks, each).reshape(len(blocks), -1)) for each in (0, 1, 4, 5)])
    axes = np.linalg.eigh(everything.T @ everything)[1][:, -COARSE:]
    tree = cKDTree(flat @ axes)
    pairs = []
    for orientation in range(8):
        turned = _unit(orient(blocks, orientation).reshape(len(blocks), -1))
        # Unit vectors correlate by r where their distance is sqrt(2 - 2 r); fewer axes only bring them nearer.
        reach = np.sqrt(2 - 2 * LEAST_COARSE)
        found = tree.query(turned @ axes, k=NEIGHBOURS + 1, distance_upper_bound=reach, workers=-1)[1]
        second, column = np.nonzero(found < len(flat))
        first = found[second, column]
        coarse = (flat[first] * turned[second]).sum(axis=1)
        found = pd.DataFrame({"first": first, "second": second, "orientation": orientation, "coarse": coarse})
        pairs.append(found[(first != second) & (coarse >= LEAST_COARSE)])
    table = pd.concat(pairs).sort_values("coarse", ascending=False, kind="stable")
    # So many for each picture and no more: what is to be compared grows with the pictures, however alike they are.
    table = table.groupby("second").head(MOST_PROPOSED).reset_index(drop=True)
    swapped = table["first"] > table["second"]
    # The second, turned, matches the first; so the first, turned back, matches the second.
    back = np.array([0, 3, 2, 1, 4, 5, 6, 7])
    table.loc[swapped, ["first", "second"]] = table.loc[swapped, ["second", "first"]].to_numpy()
    table.loc[swapped, "orientation"] = back[table.loc[swapped, "orientation"]]
    return table.drop_duplicates(["first", "second", "orientation"], ignore_index=True)


# --- the fine measure ------------------------------------------------------------------------------------------------


def _detail(pictures: np.ndarray) -> np.ndarray:
    """Return the fine detail of pictures (..., H, H), each of unit energy and locally even contrast."""
    side = pictures.shape[-1]
    blur = (0,) * (pictures.ndim - 2) + (3 * side / SIDE,) * 2
    detail = pictures - gaussian_filter(pictures, blur)
    even = np.sqrt(gaussian_filter(detail * detail, np.multiply(blur, 2))) + 2
    detail = detail / even * np.outer(np.hanning(side), np.hanning(side)).astype(np.float32)
    detail -= detail.mean(axis=(-2, -1), keepdims=True)
    return detail / np.maximum(np.linalg.norm(detail, axis=(-2, -1), keepdims=True), 1e-6)


def _rescale(picture: np.ndarray, scale: float) -> np.ndarray:
    """Enlarge or shrink about the middle, (SIDE, SIDE) to (SIDE, SIDE)."""
    margin = SIDE * (1 - 1 / scale) / 2
    box = (margin, margin, SIDE - margin, SIDE - margin)
    if margin < 0:
        picture = np.pad(picture, SIDE // 4, mode="edge")
        box = tuple(edge + SIDE // 4 for edge in box)
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def _scaled_details(picture: np.ndarray) -> np.ndarray:
    """Return the fine detail of a picture at each of SCALES, (5, SIDE, SIDE)."""
    picture = picture.astype(np.float32)
    return _detail(np.stack([_rescale(picture, scale) for scale in SCALES]))


def _highest_correlations(firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return the highest correlation over small shifts of details (..., H, H) with others of the same shape, (...)."""
    side = firsts.shape[-1]
    reach = MOST_SHIFT * side // SIDE
    surface = fft.irfft2(fft.rfft2(firsts) * np.conj(fft.rfft2(seconds)), s=(side, side))
    # The shifts by -reach to reach lie in the four corners.
    shifts = np.r_[: reach + 1, -reach:0]
    return surface[..., shifts[:, None], shifts].max(axis=(-2, -1))


def screen(thumbnails: np.ndarray, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the proposed pairs without those whose detail does not agree at half the size either.

    A twentieth of the work of :func:`agreement`, in which most pairs end that merely look alike.
    """
    half = thumbnails.reshape(len(thumbnails), SIDE // 2, 2, SIDE // 2, 2)
    details = np.empty((len(thumbnails), SIDE // 2, SIDE // 2), np.float16)
    for start in range(0, len(half), 1024):
        details[start : start + 1024] = _detail(half[start : start + 1024].mean(axis=(2, 4), dtype=np.float32))
    kept = []
    for _, part in pairs.groupby("orientation"):
        for start in range(0, len(part), 1024):
            some = part.iloc[start : start + 1024]
            firsts = details[some["first"]].astype(np.float32)
            seconds = orient(details[some["second"]], some["orientation"].iloc[0]).astype(np.float32)
            kept.append(some[_highest_correlations(firsts, seconds) >= LEAST_HALF])
    return pd.concat([pairs.iloc[:0], *kept])


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Return the highest correlation of two thumbnails' fine detail over small shifts and scales, at most 1.

    Args:
        first, second: (SIDE, SIDE) grey values, in the same orientation.
    """
    return float(_highest_correlations(_detail(first.astype(np.float32)), _scaled_details(second)).max())


def _agreements(job: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[float]:
    """Return one picture's agreement with several others, each in an orientation of the one."""
    second, firsts, orientations = job
    details = _scaled_details(second)  # made once: turning them later is the same as turning the picture first
    return [
        float(_highest_correlations(_detail(first.astype(np.float32)), orient(details, orientation)).max())
        for first, orientation in zip(firsts, orientations, strict=True)
    ]


def match(thumbnails: np.ndarray, groups: Sequence | None = None) -> tuple[pd.DataFrame, int]:
    """Return the pairs of thumbnails that show the same photograph, the most alike first.

    Args:
        thumbnails: (N, SIDE, SIDE) grey values.
        groups: one label for each; only pairs across groups are looked for. All pairs by default.

    Returns:
        Columns ``first``, ``second`` (positions), ``orientation`` and ``fine``, as in :func:`find_duplicates`; and how
        many pairs were proposed.
    """
    pairs = propose(thumbnails)
    if groups is not None:
        groups = np.asarray(groups)
        pairs = pairs[groups[pairs["first"]] != groups[pairs["second"]]]
    proposed = len(pairs)
    pairs = screen(thumbnails, pairs)
    pairs = pairs.sort_values("second", kind="stable", ignore_index=True)
    parts = [part for _, part in pairs.groupby("second")]
    fine = []
    with ProcessPoolExecutor() as pool:
        for start in range(0, len(parts), 1024):  # the pool queues all that it is given, pictures included
            jobs = (
                (thumbnails[part["second"].iloc[0]], thumbnails[part["first"]], part["orientation"].to_numpy())
                for part in parts[start : start + 1024]
            )
            fine += [value for values in pool.map(_agreements, jobs, chunksize=32) for value in values]
    pairs["fine"] = np.array(fine, float)
    least = np.where(pairs["coarse"] >= SURE_COARSE, LEAST_FINE, SURE_FINE)
    pairs = pairs.drop(columns="coarse")
    same = pairs[pairs["fine"] >= least].sort_values("fine", ascending=False, kind="stable")
    # A round lesion may match in two orientations; the best stays.
    return same.drop_duplicates(["first", "second"], ignore_index=True), proposed


def copies(digests: Sequence[bytes], groups: Sequence | None = None) -> pd.DataFrame:
    """Return pairs of equal files, as :func:`match` does: each with the first other one (of another group)."""
    groups = range(len(digests)) if groups is None else groups
    places: dict[bytes, list[int]] = {}
    for place, digest in enumerate(digests):
        places.setdefault(digest, []).append(place)
    pairs = set()
    for same in places.values():
        firsts = {groups[place]: place for place in reversed(same)}  # the first of each group
        firsts = sorted(firsts.values())[:2]  # two are enough: whatever a file's group, one of them is of another
        pairs |= {
            tuple(sorted((place, first)))
            for place in same
            for first in [next((each for each in firsts if groups[each] != groups[place]), None)]
            if first is not None
        }
    return pd.DataFrame(
        [(first, second, 0, 1.0) for first, second in sorted(pairs)], columns=["first", "second", "orientation", "fine"]
    )


def find_duplicates(files: Sequence[str | os.PathLike], groups: Sequence | None = None) -> pd.DataFrame:
    """Return all pairs of files that show the same photograph, the most alike first.

    Args:
        files: readable pictures.
        groups: one label for each file; only pairs across groups are looked for. All pairs by default.

    Returns:
        Columns ``first``, ``second`` (files), ``kind`` (``"same bytes"``, ``"near"``, or ``"suspected"`` where
        they agree by less than ``SURE_FINE`` and should be looked at), ``fine`` (the correlation of their detail, at
        most 1) and ``orientation`` (of the second, to match the first; see :func:`orient`).
    """
    files = [str(file) for file in files]
    with ProcessPoolExecutor() as pool:
        thumbnails = np.stack(list(pool.map(thumbnail, files, chunksize=32)))
    pairs, _ = match(thumbnails, groups)
    digests = [hashlib.sha256(Path(file).read_bytes()).digest() for file in files]
    # However many copies there are, and however plain the picture.
    pairs = pd.concat([copies(digests, groups), pairs]).drop_duplicates(["first", "second"], ignore_index=True)
    same = np.array([digests[a] == digests[b] for a, b in zip(pairs["first"], pairs["second"], strict=True)], bool)
    return pd.DataFrame(
        {
            "first": [files[i] for i in pairs["first"]],
            "second": [files[i] for i in pairs["second"]],
            "kind": np.select([same, pairs["fine"] >= SURE_FINE], ["same bytes", "near"], "suspected"),
            "fine": pairs["fine"].to_numpy(),
            "orientation": pairs["orientation"].to_numpy(),
        }
    )
