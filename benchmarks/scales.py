"""Measure how well derma.attributes finds printed scales, against what an eye saw in 420 training images of ISIC 2017.

    python benchmarks/scales.py data/isic2017

scales.csv says for each image what was seen in it: a millimetre scale, only a ruler's ticks at the edge, or neither.
The limit was set on the 300 of part "limit"; those of part "check" were labelled before the detector saw them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from derma.attributes import scale_shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how well printed scales are found.")
    parser.add_argument("data", nargs="?", default="data/isic2017", help="the data folder")
    train = Path(parser.parse_args().data) / "train"
    labels = pd.read_csv(Path(__file__).with_name("scales.csv"))
    files = {file.stem: file for file in train.glob("*/*") if file.is_file()}
    missing = [name for name in labels["Id"] if name not in files]
    if missing:
        parser.error(f"{train} has no image {missing[0]}; it should be the training split of ISIC 2017 (make data)")
    labels["found"] = [scale_shown(Image.open(files[name])) for name in labels["Id"]]
    print(labels.groupby(["part", "seen"])["found"].agg(images="size", found="sum").to_string())


if __name__ == "__main__":
    main()
