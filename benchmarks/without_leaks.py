"""Score results.csv without the test images of which train or valid holds another picture.

python -m derma.check data/isic2017        # writes models/isic2017/leaks.csv
python benchmarks/without_leaks.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    folder = ROOT / "models" / "isic2017"
    if not (folder / "leaks.csv").exists():
        print(
            f"{folder / 'leaks.csv'}: no such file; run 'python -m derma.check data/isic2017' first.", file=sys.stderr
        )
        return 2
    leaks = pd.read_csv(folder / "leaks.csv")
    leaks = leaks[leaks["splits"].isin(["train, test", "valid, test"])]
    leaked = {Path(file).stem for file in [*leaks["first"], *leaks["second"]] if Path(file).parts[-3] == "test"}
    for name in ("results.csv", "ground_truth.csv"):
        table = pd.read_csv(ROOT / name)
        kept = table[[Path(identifier).stem not in leaked for identifier in table["Id"]]]
        (folder / "clean").mkdir(exist_ok=True)
        kept.to_csv(folder / "clean" / name, index=False)
    command = [sys.executable, "get_results.py", str(folder / "clean" / "results.csv"), "--figures", "none"]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
