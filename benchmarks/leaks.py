"""Measure the search for duplicates: its time and recall on data folders, and how its time grows up to 50,000 images.

python benchmarks/leaks.py                  # ten minutes on two cores, most of them for drawing
python benchmarks/leaks.py data/isic2017    # first a real folder: time, and how many cropped copies are found
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from math import log2
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from derma.dataset import CLASSES, LesionData, load_image
from derma.duplicates import SIDE, match, orient, thumbnail
from derma.leaks import find_leaks
from derma.sample import draw_image

SIZES, COPIES = (2_750, 5_500, 11_000, 22_000, 50_000), 100


def draw(number: int) -> np.ndarray:
    """Return a drawn thumbnail, (SIDE, SIDE) grey values."""
    image = draw_image(CLASSES[number % 3], np.random.default_rng((11, number)), (SIDE, SIDE))
    return np.asarray(image.convert("L"))


def crop(file: str, share: float) -> np.ndarray:
    """Return the thumbnail of an image without a share of its width and height."""
    image = load_image(file)
    x, y = (round(side * share / 2) for side in image.size)
    inner = image.crop((x, y, image.width - x, image.height - y)).resize(image.size)
    return np.asarray(inner.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def main() -> None:
    for folder in sys.argv[1:]:
        data, started = LesionData(folder), time.perf_counter()
        pairs, seconds = len(find_leaks(data.images)), time.perf_counter() - started
        print(f"{folder}: {len(data.images):,} images, {pairs} pairs, {seconds:.1f} s")
        thumbnails = [thumbnail(path) for path in data.images["path"]]
        tested = np.flatnonzero(data.images["split"] == "test")[::8]
        for share in (0.05, 0.1):
            found = match(np.stack(thumbnails + [crop(data.images["path"][k], share) for k in tested]))[0]
            planted = set(zip(tested, range(len(thumbnails), len(thumbnails) + len(tested))))
            recall = len(planted & set(zip(found["first"], found["second"])))
            print(f"  cropped by {share:.0%}: {recall} of {len(tested)} copies found")

    with ProcessPoolExecutor() as pool:
        drawn = np.stack(list(pool.map(draw, range(max(SIZES)), chunksize=256)))
    noise = np.random.default_rng(0)
    print("thumbnails  seconds  us per n log2 n  copies found, of 100  other pairs")
    for size in SIZES:  # each copy is turned and noisy, as another image of the same photograph is
        copies = [orient(drawn[i], 1 + i % 7) + noise.normal(0, 4, (SIDE, SIDE)) for i in range(COPIES)]
        thumbnails = np.concatenate([drawn[: size - COPIES], np.clip(copies, 0, 255).astype(np.uint8)])
        started = time.perf_counter()
        pairs, seconds = match(thumbnails)[0], time.perf_counter() - started
        found = (pairs["second"] - pairs["first"] == size - COPIES).sum()
        rate = f"{seconds / (size * log2(size)) * 1e6:16.1f}"
        print(f"{size:10,} {seconds:8.1f} {rate} {found:21} {len(pairs) - found:12}", flush=True)


if __name__ == "__main__":
    main()
