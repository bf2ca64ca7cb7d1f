"""Score predictions for part 3 of the ISIC 2017 challenge.

    python get_results.py results.csv           # the three scores; melanoma's confusion matrix at 0.5
    python get_results.py results.csv 0.4       # the same at another threshold

The figures go to images/scores/. The truth comes from ground_truth.csv, joined on the Id's file name.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

from derma.scoring import ScoringError, join, operating_point, read_table, score


def threshold_type(text: str) -> float:
    try:
        threshold = float(text)
    except ValueError:
        threshold = float("nan")
    if not 0 <= threshold <= 1:
        raise argparse.ArgumentTypeError(f"the threshold should be a number from 0 to 1, not '{text}'")
    return threshold


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The three ROC-AUC scores of part 3 of the ISIC 2017 challenge.")
    parser.add_argument("results", type=Path, help="predictions: Id,task_1,task_2 (probabilities)")
    parser.add_argument(
        "threshold", type=threshold_type, nargs="?", default=0.5, help="melanoma from here on (default: 0.5)"
    )
    parser.add_argument(
        "--truth", type=Path, default=Path("ground_truth.csv"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--figures", type=Path, default=Path("images/scores"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--show", action="store_true", help="also open the figures in windows")
    return parser.parse_args(arguments)


def draw(joined, point, folder: Path, show: bool) -> None:
    if not show:
        matplotlib.use("agg")  # no window, and no search for a display
    from matplotlib import pyplot as plt

    from derma import figures

    figures.roc(joined, folder / "roc.png")
    title = f"Melanoma at threshold {point.threshold:g}"
    figures.confusion(point.matrix, ["other", "melanoma"], title, folder / "melanoma_confusion.png")
    print(f"Figures: {folder / 'roc.png'}, {folder / 'melanoma_confusion.png'}")
    if show:
        plt.show()


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        joined = join(read_table(options.results), read_table(options.truth, truth=True), options.results)
    except ScoringError as error:
        print(error, file=sys.stderr)
        return 2
    for category, area in enumerate(score(joined), start=1):
        print(f"Category {category} Score: {area:.3f}")
    point = operating_point(joined["true_1"], joined["task_1"], options.threshold)
    print(
        f"Melanoma at threshold {point.threshold:g}: sensitivity {point.sensitivity:.3f}, "
        f"specificity {point.specificity:.3f}, balanced accuracy {point.balanced_accuracy:.3f} ({len(joined)} pictures)"
    )
    draw(joined, point, options.figures, options.show)
    return 0


if __name__ == "__main__":
    sys.exit(main())
