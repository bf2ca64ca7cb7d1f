"""Measure how the search for duplicates grows: from 2,750 drawn thumbnails to 50,000, each set with a hundred copies.

python benchmarks/leaks.py                  # about ten minutes on two cores, most of them for drawing
python benchmarks/leaks.py data/isic2017    # first for a real folder: time, and cropped copies found
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from math import log2
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from derma.check import find_leaks  # noqa: E402 - the package is not installed, it lies beside this folder
from derma.dataset import CLASSES, SPLITS, LesionData, load_image  # noqa: E402
from derma.duplicates import SIDE, match, orient, thumbnail  # noqa: E402
from derma.sample import draw_picture  # noqa: E402

SIZES, COPIES = (2_750, 5_500, 11_000, 22_000, 50_000), 100


def draw(number: int) -> np.ndarray:
    """Return one drawn thumbnail, (SIDE, SIDE) grey values."""
    picture = draw_picture(CLASSES[number % 3], np.random.default_rng((11, number)), (SIDE, SIDE))
    return np.asarray(picture.convert("L"))


def crop(job: tuple[str, float]) -> np.ndarray:
    """Return the thumbnail of a picture without a share of its width and height."""
    file, share = job
    picture = load_image(file)
    x, y = (round(side * share / 2) for side in picture.size)
    inner = picture.crop((x, y, picture.width - x, picture.height - y)).resize(picture.size)
    return np.asarray(inner.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def recall_of_crops(data: LesionData, share: float) -> tuple[int, int]:
    """Return how many cropped copies of every eighth test picture are found among all pictures, and their number."""
    files = [path for split in SPLITS for path, _ in data.split(split).samples]
    originals = [path for path, _ in data.split("test").samples][::8]
    with ProcessPoolExecutor() as pool:
        all_of_them = list(pool.map(thumbnail, files, chunksize=32))
        cropped = list(pool.map(crop, [(file, share) for file in originals], chunksize=8))
    pairs, _ = match(np.stack(all_of_them + cropped))
    found = set(zip(pairs["first"], pairs["second"]))
    return sum((files.index(file), len(files) + k) in found for k, file in enumerate(originals)), len(originals)


def main() -> None:
    for folder in sys.argv[1:]:
        data = LesionData(folder)
        started = time.perf_counter()
        pairs = find_leaks(data)
        seconds = time.perf_counter() - started
        print(f"{folder}: {data.counts.loc['all', 'all']:,} pictures, {len(pairs)} pairs, {seconds:.1f} s", flush=True)
        for share in (0.05, 0.1):
            found, planted = recall_of_crops(data, share)
            print(f"  cropped by {share:.0%}: {found} of {planted} copies found", flush=True)

    started = time.perf_counter()
    with ProcessPoolExecutor() as pool:
        drawn = np.stack(list(pool.map(draw, range(max(SIZES)), chunksize=256)))
    print(f"{len(drawn):,} thumbnails drawn in {time.perf_counter() - started:.0f} s", flush=True)
    noise = np.random.default_rng(0)
    print(
        f"{'thumbnails':>10} {'seconds':>8} {'us per n log2 n':>16} {'proposed':>9} {'copies found':>13} {'others':>7}"
    )
    for size in SIZES:
        # Each copy is turned and made noisy, as a picture of the same photograph is.
        copies = [orient(drawn[i], 1 + i % 7) + noise.normal(0, 4, (SIDE, SIDE)) for i in range(COPIES)]
        thumbnails = np.concatenate([drawn[: size - COPIES], np.clip(copies, 0, 255).astype(np.uint8)])
        started = time.perf_counter()
        pairs, proposed = match(thumbnails)
        seconds = time.perf_counter() - started
        planted = (pairs["second"] - pairs["first"] == size - COPIES).sum()
        per = seconds / (size * log2(size)) * 1e6
        others = len(pairs) - planted
        print(f"{size:10,} {seconds:8.1f} {per:16.1f} {proposed:9,} {planted:9} /100 {others:7}", flush=True)


if __name__ == "__main__":
    main()
