"""Check a data folder: is it complete, can it be read, and does one split leak into another?

    python -m derma.check data/isic2017

Leaks are pictures of one photograph in two places; between train and test they make a score too good. The tables go to
``models/<name>/leaks.csv``, and the pairs, side by side, to ``models/<name>/leaks.png``.
"""

from __future__ import annotations

import sys
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from derma.commands import Parser
from derma.dataset import SPLITS, DatasetError, LesionData, load_image
from derma.duplicates import LEAST_FINE, SURE_FINE, find_duplicates, orient

OFFICIAL = Path(__file__).with_name("isic2017.csv")  # every image of part 3: id, split and class (CC-0)


def compare_with_official(data: LesionData) -> pd.DataFrame:
    """Return what differs from the official ISIC 2017 part 3, a row for each image.

    Args:
        data: an opened folder.

    Returns:
        Columns ``id`` and ``problem``; empty if each of the 2,750 images lies where it should, and no other.
    """
    official = pd.read_csv(OFFICIAL, index_col="id")
    here = pd.DataFrame(
        [Path(identifier).parts[-3:] for split in SPLITS for identifier in data.split(split).ids],
        columns=["split", "class", "file"],
    )
    here.index = [Path(file).stem for file in here["file"]]
    problems = [(name, "missing") for name in official.index.difference(here.index)]
    problems += [(name, "not one of the official images") for name in here.index.difference(official.index)]
    problems += [(name, "twice") for name in here.index[here.index.duplicated()].unique()]
    both = here[~here.index.duplicated()].join(official.add_suffix("_official"), how="inner")
    moved = both[(both["split"] != both["split_official"]) | (both["class"] != both["class_official"])]
    for name, row in moved.iterrows():
        where = f"in {row['split']}/{row['class']}, belongs in {row['split_official']}/{row['class_official']}"
        problems.append((name, where))
    return pd.DataFrame(problems, columns=["id", "problem"])


def find_leaks(data: LesionData) -> pd.DataFrame:
    """Return all pairs of pictures that show one photograph, with their splits.

    Args:
        data: an opened folder.

    Returns:
        As ``derma.duplicates.find_duplicates`` does, and ``splits``, such as ``"train, test"``.
    """
    folders = {split: [path for path, _ in data.split(split).samples] for split in SPLITS}
    owner = {path: split for split, paths in folders.items() for path in paths}
    pairs = find_duplicates([path for paths in folders.values() for path in paths])
    # The split that comes first in SPLITS is named first, whatever the files' order.
    pairs["splits"] = [
        ", ".join(sorted((owner[a], owner[b]), key=SPLITS.index)) for a, b in zip(pairs["first"], pairs["second"])
    ]
    return pairs


def training_leaks(data: LesionData, trained: tuple[str, ...] = ("train",)) -> pd.DataFrame:
    """Return the training pictures that show a photograph of a split that is not trained on.

    Args:
        data: an opened folder; its extra pictures, if any, are looked at too.
        trained: the splits that are trained on.

    Returns:
        A row for each pair: ``train`` (its file), ``other`` (the file it shares a photograph with), ``split`` (of the
        other) and ``fine`` (see :func:`derma.duplicates.find_duplicates`).
    """
    owner = {path: split for split in SPLITS for path, _ in data.split(split).samples}
    found = []
    while True:
        left = {path: split for path, split in owner.items() if not any(path in set(part["train"]) for part in found)}
        pairs = find_duplicates(list(left), groups=[split in trained for split in left.values()])
        flipped = pairs["first"].map(owner).isin(trained)
        train, other = pairs["first"].where(flipped, pairs["second"]), pairs["second"].where(flipped, pairs["first"])
        found.append(pd.DataFrame({"train": train, "other": other, "split": other.map(owner), "fine": pairs["fine"]}))
        # Only the nearest few of each picture are compared: what many copies hid is looked for among the rest.
        if pairs.empty:
            return pd.concat(found, ignore_index=True)


def photographs(paths: list[str]) -> np.ndarray:
    """Number the photographs that pictures show, so that those of one can be kept in one fold.

    Args:
        paths: N picture files.

    Returns:
        (N,) int: equal where :func:`derma.duplicates.find_duplicates` finds the same photograph, also through a third.
    """
    pairs = find_duplicates(paths)
    place = {path: number for number, path in enumerate(paths)}
    rows, columns = pairs["first"].map(place), pairs["second"].map(place)
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(paths), len(paths)))
    return connected_components(graph, directed=False)[1]


def draw_sheet(pairs: pd.DataFrame, side: int = 128, columns: int = 5) -> Image.Image:
    """Return a sheet of pairs side by side, the second turned as the first, with their names and agreement.

    Args:
        pairs: as :func:`find_leaks` returns it, not empty.
        side: of each picture, in pixels.
        columns: pairs in a row.
    """
    width, height = 2 * side + 8, side + 28
    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, pair in enumerate(pairs.itertuples()):
        x, y = number % columns * width, number // columns * height
        first, second = (load_image(file, side).resize((side, side)) for file in (pair.first, pair.second))
        turned = orient(np.asarray(second).transpose(2, 0, 1), pair.orientation).transpose(1, 2, 0)
        sheet.paste(first, (x, y + 26))
        sheet.paste(Image.fromarray(np.ascontiguousarray(turned)), (x + side, y + 26))
        draw.text((x + 2, y), f"{Path(pair.first).stem}  {Path(pair.second).stem}", "black")
        draw.text((x + 2, y + 12), f"{pair.splits}: {pair.kind}, {pair.fine:.2f}", "black")
    return sheet


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.check``; returns the exit code, 2 if the folder cannot be opened."""
    parser = Parser(prog="python -m derma.check", description="Check a data folder for gaps, damage and leaks.")
    parser.add_argument("data", type=Path, help="a folder {train,valid,test}/{melanoma,nevus,seborrheic_keratosis}")
    options = parser.parse_args(arguments)
    try:
        data = LesionData(options.data)
    except DatasetError as error:
        print(error, file=sys.stderr)
        return 2
    print(data.counts.to_string())
    print(f"\nUnreadable: {len(data.unreadable)}")
    if len(data.unreadable):
        print(data.unreadable.head(20).to_string(index=False))
    problems = compare_with_official(data)
    if (problems["problem"] == "missing").sum() == len(pd.read_csv(OFFICIAL)):
        print("Not ISIC 2017 part 3: none of its images is here.")
    elif problems.empty:
        print("Complete: all 2,750 images of ISIC 2017 part 3, each in its place.")
    else:
        print(f"Other than ISIC 2017 part 3 in {len(problems):,} images, the first of them:")
        print(problems.head(20).to_string(index=False))

    pairs = find_leaks(data)
    print(f"\nPictures of one photograph: {len(pairs)} pairs")
    for first, second in combinations_with_replacement(SPLITS, 2):
        between = pairs[pairs["splits"] == f"{first}, {second}"]
        exact, suspected = ((between["kind"] == kind).sum() for kind in ("same bytes", "suspected"))
        where = f"{first} and {second}"
        print(f"  {where:16} {len(between):4}, of them {exact} with the same bytes, {suspected} suspected")
    out = Path("models") / data.name
    try:
        out.mkdir(parents=True, exist_ok=True)
        pairs.to_csv(out / "leaks.csv", index=False, float_format="%.3f")
        if len(pairs):
            draw_sheet(pairs).save(out / "leaks.png")
    except OSError as error:
        print(f"{error.filename or out}: {error.strerror}; the tables go there, so make room.", file=sys.stderr)
        return 2
    if len(pairs):
        print(f"Listed in {out / 'leaks.csv'}, shown in {out / 'leaks.png'}.")
    if (pairs["kind"] == "suspected").any():
        print(
            f"Those suspected agree by {LEAST_FINE} to {SURE_FINE}: one photograph much changed, or smooth lesions of "
            "one outline; look at them."
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(2)
