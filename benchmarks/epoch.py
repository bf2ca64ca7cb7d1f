"""Measure an epoch of training data: out of a data folder, against the way of 2022, side by side in one run.

python benchmarks/epoch.py ORIGINALS      # a folder of class folders of large JPEGs

The old way: ImageFolder on the originals, each picture decoded, rotated and resized at its full size, then
cropped, in one process. Ours: the same pictures, shrunk once by derma.shrink, with the augmentation that the notebook
holds, by two worker processes and by none.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from torch.utils.data import ConcatDataset, DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from derma.augmentation import RandomLight, RandomView  # noqa: E402 - the package is not installed
from derma.dataset import KeptPictures, load_square, make_loader  # noqa: E402
from derma.shrink import shrink_all  # noqa: E402

SIZE, REPEATS = 224, 40  # pixels that the network of 2022 saw; how often ours goes over the few originals


def old_way() -> transforms.Compose:
    """What the notebook of 2022 did to each picture."""
    return transforms.Compose(
        [
            transforms.RandomRotation(180),
            transforms.Resize(256),
            transforms.RandomCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )


def notebooks_augmentation(size: int) -> tuple[v2.Compose, int]:
    """Return the notebook's augmentation, read from the notebook, and the side of the squares that it takes."""
    cells = json.loads((ROOT / "skin_lesion_classification.ipynb").read_text(encoding="utf-8"))["cells"]
    code = next(text for text in ("".join(cell["source"]) for cell in cells) if "augment = " in text)
    settings = SimpleNamespace(image_size=size)
    scope = {"v2": v2, "RandomView": RandomView, "RandomLight": RandomLight, "cfg": settings, "to_tensor": v2.ToImage()}
    exec(code[: code.index("\n)") + 2], scope)
    return scope["augment"], scope["larger"]


def rate(loader: DataLoader, count: int) -> float:
    """Return the images/s of one pass, workers already running."""
    started = time.perf_counter()
    seen = sum(len(batch) for batch, _ in loader)
    assert seen == count
    return seen / (time.perf_counter() - started)


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("Name a folder of class folders of large JPEGs.", file=sys.stderr)
        return 2
    originals = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        shrink_all(originals, Path(scratch) / "small")
        old = ImageFolder(originals, old_way())
        for path, _ in old.samples:
            Path(path).read_bytes()  # both ways find it in the page cache
        augment, side = notebooks_augmentation(SIZE)
        small = ImageFolder(Path(scratch) / "small", augment, loader=partial(load_square, side=side))
        # The best of three passes, since it is a short one: what is said of ours is not too much.
        old_rate = max(rate(DataLoader(old, batch_size=8, shuffle=True), len(old)) for _ in range(3))
        rates = {"ImageFolder on the originals, one process": old_rate}
        for name, folder in (("decoded anew", small), ("decoded once", KeptPictures(small, side))):
            for workers in (0, 2):
                loader = make_loader(ConcatDataset([folder] * REPEATS), 32, shuffle=True, workers=workers)
                rate(loader, len(small) * REPEATS)  # the workers start, and what is kept gets decoded
                rates[f"the notebook's way, {name}, workers: {workers}"] = rate(loader, len(small) * REPEATS)
    print(f"{len(old)} originals, {SIZE} px")
    for way, images in rates.items():
        print(f"  {way:55} {images:8.1f} images/s  {images / old_rate:6.1f} x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
