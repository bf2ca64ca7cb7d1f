"""Measure get_results.py from process start to exit: on results.csv, and on a million drawn rows.

python benchmarks/scoring.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
ROWS = 1_000_000


def measure(name: str, *arguments: str, repeats: int = 1) -> None:
    """Print the shortest of some runs, and the largest memory that any child has taken so far."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        command = [sys.executable, "get_results.py", *arguments]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes here
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
    print(f"{name:42} {min(seconds):6.2f} s   peak memory {peak:6.0f} MiB")


def draw_tables(folder: Path) -> tuple[Path, Path]:
    """Write predictions and truth for a million made-up pictures."""
    rng = np.random.default_rng(0)
    classes = rng.choice(3, ROWS, p=(0.2, 0.65, 0.15))
    ids = [f"data/large/test/ISIC_{number:07d}.jpg" for number in range(ROWS)]
    truth = pd.DataFrame({"Id": ids, "task_1": (classes == 0) * 1, "task_2": (classes == 2) * 1})
    scores = {name: rng.beta(2 + 2 * truth[name], 4) for name in ("task_1", "task_2")}
    files = folder / "results.csv", folder / "ground_truth.csv"
    for table, file in zip((pd.DataFrame({"Id": ids, **scores}), truth), files, strict=True):
        table.to_csv(file, index=False, float_format="%.6f")
    return files


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = ("--figures", str(Path(folder) / "figures"))
        measure("results.csv, without figures", "results.csv", "--figures", "none", repeats=5)
        measure("results.csv, with figures", "results.csv", *figures, repeats=5)
        results, truth = draw_tables(Path(folder))
        arguments = (str(results), "--truth", str(truth))
        measure(f"{ROWS:,} rows, without figures", *arguments, "--figures", "none")
        measure(f"{ROWS:,} rows, with figures", *arguments, *figures)


if __name__ == "__main__":
    main()
