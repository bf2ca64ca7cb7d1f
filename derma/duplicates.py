"""Find images of one photograph: exact copies, and near ones (re-compressed, recoloured, flipped, cropped).

A coarse measure proposes pairs: thumbnails of 16 x 16 grey values become 16 numbers, and a k-d tree finds the nearest
neighbours in n log n, for all eight orientations. A fine measure decides: the normalised cross-correlation (Lewis,
1995) of fine detail, such as hairs, texture and the border, over small shifts. It works at 64 x 64 pixels first, where
most pairs drop out, then at 128 x 128 and over small changes of scale. What it finds: docs/leaks.md.
"""

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

from derma.commands import progress
from derma.dataset import load_image

SIDE = 128  # of the images that the fine measure compares
COARSE = 16  # side of the coarse thumbnails, and numbers kept of each
NEIGHBOURS = 12  # examined for each image and orientation
MOST_PROPOSED = 12  # pairs kept for each image: the most similar
LEAST_COARSE = 0.65  # correlation of the coarse thumbnails, below which no pair is proposed
SURE_COARSE = 0.88  # below it SURE_FINE is required: cropped copies, but also different lesions next to a ruler
LEAST_HALF = 0.25  # correlation of the detail at half the size, below which a pair is dropped
LEAST_FINE = 0.55  # correlation of the fine detail from which a pair may be one photograph
SURE_FINE = 0.64  # from which it is; below, smooth lesions on clean skin may agree by their outlines alone
SCALES = (0.92, 0.96, 1.0, 1.04, 1.08)
MOST_SHIFT = 12  # pixels of SIDE


def orient(images: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (..., H, W) images by ``orientation % 4`` quarter turns, from 4 on mirrored first."""
    mirrored = images[..., ::-1] if orientation >= 4 else images
    return np.rot90(mirrored, orientation % 4, axes=(-2, -1))


def thumbnail(file: str | os.PathLike) -> np.ndarray:
    """Return an image as (SIDE, SIDE) grey values from 0 to 255 (uint8), squeezed to a square."""
    return np.asarray(load_image(file, SIDE).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def _unit(vectors: np.ndarray) -> np.ndarray:
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)


def propose(thumbnails: np.ndarray) -> pd.DataFrame:
    """Return pairs whose coarse thumbnails correlate, of (N, SIDE, SIDE) grey values.

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
    # Limited for each image, so that the work grows linearly with the images, however similar they are.
    table = table.groupby("second").head(MOST_PROPOSED).reset_index(drop=True)
    swapped = table["first"] > table["second"]
    # The second, turned, matches the first; so the first, turned back, matches the second.
    back = np.array([0, 3, 2, 1, 4, 5, 6, 7])
    table.loc[swapped, ["first", "second"]] = table.loc[swapped, ["second", "first"]].to_numpy()
    table.loc[swapped, "orientation"] = back[table.loc[swapped, "orientation"]]
    return table.drop_duplicates(["first", "second", "orientation"], ignore_index=True)


def _detail(images: np.ndarray) -> np.ndarray:
    """Return the fine detail of images (..., H, H), each of unit energy and locally even contrast."""
    side = images.shape[-1]
    blur = (0,) * (images.ndim - 2) + (3 * side / SIDE,) * 2
    detail = images - gaussian_filter(images, blur)
    even = np.sqrt(gaussian_filter(detail * detail, np.multiply(blur, 2))) + 2
    detail = detail / even * np.outer(np.hanning(side), np.hanning(side)).astype(np.float32)
    detail -= detail.mean(axis=(-2, -1), keepdims=True)
    return detail / np.maximum(np.linalg.norm(detail, axis=(-2, -1), keepdims=True), 1e-6)


def _rescale(image: np.ndarray, scale: float) -> np.ndarray:
    """Enlarge or shrink about the middle, (SIDE, SIDE) to (SIDE, SIDE)."""
    margin = SIDE * (1 - 1 / scale) / 2
    box = (margin, margin, SIDE - margin, SIDE - margin)
    if margin < 0:
        image = np.pad(image, SIDE // 4, mode="edge")
        box = tuple(edge + SIDE // 4 for edge in box)
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def _highest_correlations(firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return the highest correlation over small shifts of details (..., H, H) with others of the same shape, (...)."""
    side = firsts.shape[-1]
    reach = MOST_SHIFT * side // SIDE
    surface = fft.irfft2(fft.rfft2(firsts) * np.conj(fft.rfft2(seconds)), s=(side, side))
    # The shifts by -reach to reach lie in the four corners.
    shifts = np.r_[: reach + 1, -reach:0]
    return surface[..., shifts[:, None], shifts].max(axis=(-2, -1))


def screen(thumbnails: np.ndarray, pairs: pd.DataFrame) -> pd.DataFrame:
    """Drop the proposed pairs whose detail does not agree at half the size: a twentieth of the full measure's work."""
    half = thumbnails.reshape(len(thumbnails), SIDE // 2, 2, SIDE // 2, 2)
    parts = (half[start : start + 1024].mean(axis=(2, 4), dtype=np.float32) for start in range(0, len(half), 1024))
    details = np.concatenate([_detail(part).astype(np.float16) for part in parts])
    kept = [pairs.iloc[:0]]
    for (orientation, _), some in pairs.groupby(["orientation", np.arange(len(pairs)) // 1024]):
        firsts = details[some["first"]].astype(np.float32)
        seconds = orient(details[some["second"]], orientation).astype(np.float32)
        kept.append(some[_highest_correlations(firsts, seconds) >= LEAST_HALF])
    return pd.concat(kept)


def _agreements(job: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[float]:
    """Return one image's agreement with several others, each in its own orientation of the one."""
    second, firsts, orientations = job
    # Computed once, since turning the details is the same as turning the image first.
    details = _detail(np.stack([_rescale(second.astype(np.float32), scale) for scale in SCALES]))
    return [
        float(_highest_correlations(_detail(first.astype(np.float32)), orient(details, orientation)).max())
        for first, orientation in zip(firsts, orientations, strict=True)
    ]


def compare(thumbnails: np.ndarray, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the proposed pairs that show one photograph, the most similar first, with ``fine`` for ``coarse``."""
    pairs = screen(thumbnails, pairs).sort_values("second", kind="stable", ignore_index=True)
    parts = [part for _, part in pairs.groupby("second")]
    fine = []
    with ProcessPoolExecutor() as pool:
        for start in progress(range(0, len(parts), 1024), desc="pairs"):  # the pool queues all its input, images too
            jobs = (
                (thumbnails[part["second"].iloc[0]], thumbnails[part["first"]], part["orientation"].to_numpy())
                for part in parts[start : start + 1024]
            )
            fine += [value for values in pool.map(_agreements, jobs, chunksize=32) for value in values]
    pairs["fine"] = np.array(fine, float)
    least = np.where(pairs["coarse"] >= SURE_COARSE, LEAST_FINE, SURE_FINE)
    same = pairs[pairs["fine"] >= least].drop(columns="coarse").sort_values("fine", ascending=False, kind="stable")
    # A round lesion may match in two orientations; the best stays.
    return same.drop_duplicates(["first", "second"], ignore_index=True)


def copies(digests: Sequence[bytes], groups: Sequence) -> pd.DataFrame:
    """Return pairs of equal files, as :func:`compare` does: each with the first one of another group."""
    files = pd.DataFrame({"place": range(len(digests)), "digest": digests, "group": groups})
    heads = files.drop_duplicates(["digest", "group"]).groupby("digest").head(2)
    pairs = files.merge(heads, on="digest", suffixes=("", "_of_head"))
    pairs = pairs[pairs["group"] != pairs["group_of_head"]].drop_duplicates("place")
    pairs = pd.DataFrame(np.sort(pairs[["place", "place_of_head"]], axis=1), columns=["first", "second"])
    return pairs.drop_duplicates().assign(orientation=0, fine=1.0)


def find_duplicates(files: Sequence[str | os.PathLike], groups: Sequence | None = None) -> pd.DataFrame:
    """Return all pairs of files that show one photograph, the most similar first.

    ``groups`` has a label for each file: only pairs across groups are searched for.

    Returns:
        Columns ``first``, ``second`` (files), ``kind`` (``"same bytes"``, ``"near"``, or ``"suspected"`` where
        they agree by less than ``SURE_FINE`` and need a look), ``fine`` (the correlation of their detail, at
        most 1) and ``orientation`` (of the second, to match the first; see :func:`orient`).
    """
    files = [str(file) for file in files]
    groups = np.arange(len(files)) if groups is None else np.asarray(groups)
    with ProcessPoolExecutor() as pool:
        made = pool.map(thumbnail, files, chunksize=32)
        thumbnails = np.stack(list(progress(made, total=len(files), desc="thumbnails", unit="image")))
    pairs = propose(thumbnails)
    pairs = compare(thumbnails, pairs[groups[pairs["first"]] != groups[pairs["second"]]])
    digests = [hashlib.sha256(Path(file).read_bytes()).digest() for file in files]
    # Equal files are found by their bytes: the fine measure finds nothing in a plain image, or too few of many copies.
    pairs = pd.concat([copies(digests, groups), pairs]).drop_duplicates(["first", "second"], ignore_index=True)
    same = np.array([digests[a] == digests[b] for a, b in zip(pairs["first"], pairs["second"], strict=True)], bool)
    pairs["kind"] = np.select([same, pairs["fine"] >= SURE_FINE], ["same bytes", "near"], "suspected")
    for column in ("first", "second"):
        pairs[column] = [files[place] for place in pairs[column]]
    return pairs[["first", "second", "kind", "fine", "orientation"]]
