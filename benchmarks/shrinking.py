"""Measure derma.shrink against decoding at full size, side by side in one run.

python benchmarks/shrinking.py ORIGINALS      # a folder of large JPEGs
python benchmarks/shrinking.py                # the same on drawn photographs of 12 megapixels
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from derma.sample import draw_picture  # noqa: E402 - the package is not installed, it lies beside this folder
from derma.shrink import SHORT_SIDE, shrink, shrink_all  # noqa: E402

PEAK = """
import resource, sys
sys.path.insert(0, {root!r})
from derma.shrink import shrink_all
if __name__ == "__main__":
    shrink_all({originals!r}, {out!r})
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(*(value / (2**20 if sys.platform == "darwin" else 2**10) for value in usage))
"""


def full_decode(file: Path) -> Image.Image:
    """The plain way: decode every pixel, then resize."""
    with Image.open(file) as picture:
        whole = ImageOps.exif_transpose(picture).convert("RGB")
    scale = SHORT_SIDE / min(whole.size)
    return whole.resize((round(whole.width * scale), round(whole.height * scale)), Image.Resampling.LANCZOS)


def peak_memory(originals: Path, out: Path) -> tuple[float, float]:
    """Return the peak MiB of the main process and of its largest worker."""
    code = PEAK.format(root=str(ROOT), originals=str(originals), out=str(out))
    script = out.parent / "peak.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    own, worker = map(float, done.stdout.split()[-2:])
    return own, worker


def measure_peaks(originals: Path, files: list[Path], folder: Path) -> dict[int, tuple[float, float]]:
    """Return the peaks for the originals, and for a hundred times as many."""
    many = folder / "many"
    many.mkdir()
    for number in range(100 * len(files)):
        (many / f"{number}.jpg").symlink_to(files[number % len(files)].resolve())
    return {
        len(files): peak_memory(originals, folder / "few_out"),
        100 * len(files): peak_memory(many, folder / "many_out"),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if len(sys.argv) > 1:
            originals = Path(sys.argv[1])
        else:
            originals = folder / "drawn"
            originals.mkdir()
            for number in range(12):
                picture = draw_picture("nevus", np.random.default_rng(number), (4288, 2848))
                picture.save(originals / f"{number}.jpg", quality=92)
        files = sorted(path for path in originals.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        for file in files:
            file.read_bytes()  # both ways find it in the page cache
        # First of all: a process's peak counts that of the one which started it, before anything large was held.
        peaks = measure_peaks(originals, files, folder)

        started = time.perf_counter()
        plain = [full_decode(file) for file in files]
        plain_rate = len(files) / (time.perf_counter() - started)
        started = time.perf_counter()
        ours = [shrink(file) for file in files]
        one_rate = len(files) / (time.perf_counter() - started)
        started = time.perf_counter()
        shrink_all(originals, folder / "out")
        all_rate = len(files) / (time.perf_counter() - started)
        print(f"{len(files)} originals")
        ways = ("full decode and resize, one process", plain_rate), ("derma.shrink, one process", one_rate)
        for way, rate in (*ways, (f"derma.shrink to disk, {os.cpu_count()} cores", all_rate)):
            print(f"{way:38} {rate:7.1f} images/s   {rate / plain_rate:5.1f} times")

        errors = [np.asarray(a, float) - np.asarray(b, float) for a, b in zip(plain, ours, strict=True)]
        grey_levels = [np.abs(error).mean() for error in errors]
        psnr = [10 * np.log10(255**2 / np.square(error).mean()) for error in errors]
        print("difference to the full decode, mean (worst picture):")
        print(f"  absolute {np.mean(grey_levels):.2f} ({max(grey_levels):.2f}) grey levels", end=", ")
        print(f"PSNR {np.mean(psnr):.1f} ({min(psnr):.1f}) dB")

        for count, (own, worker) in peaks.items():
            print(f"peak memory with {count:5} pictures: main process {own:.0f} MiB, largest worker {worker:.0f} MiB")


if __name__ == "__main__":
    main()
