"""Check a data folder: is it complete, can every image be read, and does one split leak into another?

    python -m derma.check data/isic2017

A leak is two images of one photograph in two splits. The pairs go to ``models/<name>/leaks.csv``, and a sheet that
shows them to ``models/<name>/leaks.png``.
"""

import sys
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from derma.commands import Parser, run_main
from derma.dataset import CLASSES, SPLITS, DatasetError, LesionData, load_square
from derma.duplicates import LEAST_FINE, SURE_FINE, orient
from derma.files import write_text
from derma.leaks import find_leaks

OFFICIAL = Path(__file__).with_name("isic2017.csv")  # every image of part 3: id, split and class (CC-0)


def compare_with_official(images: pd.DataFrame) -> pd.DataFrame:
    """Return how ``derma.dataset.LesionData.images`` differ from the official ones: columns ``id`` and ``problem``."""
    official = pd.read_csv(OFFICIAL, index_col="id")
    here = images["split"] + "/" + images["target"].map(CLASSES.__getitem__)
    here.index = [Path(path).stem for path in images["path"]]
    twice = here.index.duplicated()
    table = pd.DataFrame({"here": here[~twice], "official": official["split"] + "/" + official["class"]})
    table["problem"] = "in " + table["here"] + ", belongs in " + table["official"]
    table.loc[table["here"].isna(), "problem"] = "missing"
    table.loc[table["official"].isna(), "problem"] = "not one of the official images"
    table.loc[here.index[twice], "problem"] = "twice"
    wrong = (table["here"] != table["official"]) | table.index.isin(here.index[twice])
    return table.loc[wrong, ["problem"]].rename_axis("id").reset_index()


def draw_sheet(pairs: pd.DataFrame) -> Image.Image:
    """Return a sheet of the pairs from :func:`derma.leaks.find_leaks`, the second image turned to match the first."""
    side, columns = 128, 5
    width, height = 2 * side + 8, side + 28
    sheet = Image.new("RGB", (columns * width, -(-len(pairs) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, pair in enumerate(pairs.itertuples()):
        x, y = number % columns * width, number // columns * height
        turned = orient(np.moveaxis(np.asarray(load_square(pair.second, side)), 2, 0), pair.orientation)
        sheet.paste(load_square(pair.first, side), (x, y + 26))
        sheet.paste(Image.fromarray(np.moveaxis(turned, 0, 2).copy()), (x + side, y + 26))
        draw.text((x + 2, y), f"{Path(pair.first).stem}  {Path(pair.second).stem}", "black")
        draw.text((x + 2, y + 12), f"{pair.splits}: {pair.kind}, {pair.fine:.2f}", "black")
    return sheet


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.check``; returns the exit code, 2 if the folder cannot be opened."""
    parser = Parser(prog="python -m derma.check", description="Check a data folder for gaps, damage and leaks.")
    parser.add_argument("data", type=Path, help="a folder {train,valid,test}/<class>, or the class folders alone")
    options = parser.parse_args(arguments)
    try:
        data = LesionData(options.data)
    except DatasetError as error:
        print(error, file=sys.stderr)
        return 2
    print(data.counts.to_string())
    print(f"\nNot usable: {len(data.unreadable)}")
    print("".join(f"  {file}: {reason}\n" for file, reason in data.unreadable.head(20).to_numpy()), end="")
    problems = compare_with_official(data.images)
    if (problems["problem"] == "missing").sum() == len(pd.read_csv(OFFICIAL)):
        print("Not ISIC 2017 part 3: the folder holds none of its images.")
    elif problems.empty:
        print("Complete: all 2,750 images of ISIC 2017 part 3, each in the right folder.")
    else:
        print(f"{len(problems):,} differences from ISIC 2017 part 3, the first of them:")
        print(problems.head(20).to_string(index=False))

    pairs = find_leaks(data.images)
    print(f"\nPairs of images that show one photograph: {len(pairs)}")
    for first, second in combinations_with_replacement(SPLITS, 2):
        between = pairs[pairs["splits"] == f"{first}, {second}"]
        exact, suspected = ((between["kind"] == kind).sum() for kind in ("same bytes", "suspected"))
        print(f"  {f'{first} and {second}':16} {len(between):4}, {exact} with the same bytes, {suspected} suspected")
    out = Path("models") / data.name
    try:
        write_text(pairs.to_csv(index=False, float_format="%.3f"), out / "leaks.csv")
        if len(pairs):
            draw_sheet(pairs).save(out / "leaks.png")
    except OSError as error:
        print(f"{error.filename or out}: {error.strerror}; leaks.csv goes there, so make it writable.", file=sys.stderr)
        return 2
    if len(pairs):
        print(f"Listed in {out / 'leaks.csv'}, shown in {out / 'leaks.png'}.")
    if (pairs["kind"] == "suspected").any():
        print(f"Look at the suspected pairs: their details correlate by {LEAST_FINE} to {SURE_FINE} only.")
    return 0


if __name__ == "__main__":
    run_main(main)
