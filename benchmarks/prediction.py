"""Measure derma.predict: against a bare forward loop, and its memory for 100 and for 10,000 images.

    python benchmarks/prediction.py models/<run> data/<name>/test

The bare loop runs the same networks over the same images, decoded before. Both take turns in one process, and the best
of three repeats counts. For the memory, ``derma.predict`` runs on 100 and on 10,000 links to the images.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import torch
from torchvision.transforms.v2.functional import pil_to_tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from derma.commands import Parser, run_main
from derma.dataset import load_square
from derma.predict import TrainedRun, find_images


def throughput(run: TrainedRun, files: list[Path]) -> tuple[float, float]:
    """Return images per second of files to probabilities, and of a bare forward loop over decoded images."""
    decoded = torch.stack([pil_to_tensor(load_square(file, run.size)) for file in files])
    run.predict(decoded[: run.batch_size])  # warm
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run.predict_files(files)
        middle = time.perf_counter()
        for batch in decoded.split(run.batch_size):
            run.predict(batch)
        seconds.append((middle - start, time.perf_counter() - middle))
    fast, bare = map(min, zip(*seconds))
    return len(files) / fast, len(files) / bare


def peak_memory(run: Path, files: list[Path], count: int) -> float:
    """Return the peak memory in MB of a process that predicts this many links to the files."""
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(islice(cycle(files), count)):
            (Path(folder) / f"{number:06}{file.suffix}").symlink_to(file.resolve())
        command = [sys.executable, "-m", "derma.predict", str(run), folder, "--out", f"{folder}/out/p.csv"]
        child = os.posix_spawn(sys.executable, command, os.environ | {"PYTHONPATH": sys.path[0]})
        _, status, usage = os.wait4(child, 0)
        if status:
            raise SystemExit("derma.predict failed.")
        return usage.ru_maxrss / 1024  # Linux counts in kB


def main() -> None:
    parser = Parser(description="Measure derma.predict's speed and memory.")
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    options = parser.parse_args()
    files, run = find_images([options.images])[0], TrainedRun(options.run)
    fast, bare = throughput(run, files)
    print(f"{len(files)} files: {fast:.1f} images/s; the bare loop {bare:.1f}; ratio {fast / bare:.2f}", flush=True)
    few, many = (peak_memory(options.run, files, count) for count in (100, 10_000))
    print(f"peak memory: {few:.0f} MB for 100 images, {many:.0f} MB for 10,000; ratio {many / few:.2f}")


if __name__ == "__main__":
    run_main(main)
