"""Score predictions for part 3 of the ISIC 2017 challenge, with confidence intervals.

    python get_results.py results.csv                     # the three scores, thresholds and calibration
    python get_results.py results.csv 0.4                 # melanoma at another threshold
    python get_results.py results.csv --compare other.csv # is one better than the other, or is it chance?
    python get_results.py --ensemble models/a/results.csv models/b/results.csv --out models/m/results.csv
    python get_results.py 0.4 --ensemble a.csv b.csv b.csv    # a mean in which b.csv weighs twice, at another threshold
    python get_results.py logits.csv --scores             # any numbers, such as logits: the AUC alone
    python get_results.py entry.csv --truth ISIC-2017_Test_v2_Part3_GroundTruth.csv --json

The truth is the ground_truth.csv in the folder of the predictions, or else the one in this folder, unless --truth names
another file; rows are joined on the Id's file name. The truth of a held_out.csv is the class folders in its Ids.
A held_out.csv in the folder of other predictions holds those for the training images, by networks that were not trained
on them: a threshold and a calibration are chosen on it. --ensemble averages both files, and --out writes both, with the
truth. Figures go to images/scores/.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from derma import scoring
from derma.commands import Parser, run_main
from derma.files import as_json
from derma.tables import (
    Table,
    TableError,
    average,
    defined,
    join,
    number,
    output_file,
    read_table,
    truth_from_ids,
    write_predictions,
)

NAMES = {1: "melanoma", 2: "seborrheic keratosis", 3: "mean of the two"}
PLURALS = {1: "melanomas", 2: "seborrheic keratoses"}
FEW = 10  # images of a class


def held_out_files(predictions: list[Path]) -> tuple[list[Path], list[str]]:
    """Return the held_out.csv in the folder of each file, none unless each file has its own; and a warning if some."""
    files = [file.with_name("held_out.csv") if file.name else file for file in predictions]
    missing = [str(each) for each, file in zip(predictions, files, strict=True) if not file.is_file()]
    if not missing and len({file.resolve() for file in files}) == len({file.resolve() for file in predictions}):
        return files, []
    if len(missing) == len(files):
        return [], []
    what = f"there is none in the folder of {missing[0]}" if missing else "two of the files share a folder"
    return [], [f"No held_out.csv is averaged: {what}; each file needs its own."]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read and check the command line; what is wrong ends the program with exit code 2."""
    parser = Parser(
        description="The scores of part 3 of the ISIC 2017 challenge, with 95 % confidence intervals.",
        epilog="Columns: Id,task_1,task_2 or, with or without a header, image_id,melanoma,seborrheic_keratosis.",
    )
    parser.add_argument("results", nargs="?", help="predictions, as probabilities")
    parser.add_argument("threshold", nargs="?", help="melanoma at or above it, from 0 to 1 (default: 0.5)")
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="FILE",
        help="default: ground_truth.csv in their folder, or the Ids of a held_out.csv",
    )
    parser.add_argument("--compare", type=Path, metavar="FILE", help="test the difference to these predictions")
    parser.add_argument("--ensemble", type=Path, nargs="+", metavar="FILE", help="score the mean of these predictions")
    parser.add_argument("--out", type=output_file, metavar="FILE", help="with --ensemble: write the mean")
    parser.add_argument("--scores", action="store_true", help="any numbers, such as logits: only their order counts")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead of text")
    folder = Path("images/scores")
    parser.add_argument("--figures", type=Path, default=folder, metavar="DIR", help=f"default: {folder}; or 'none'")
    options = parser.parse_args(arguments)
    if options.ensemble and options.threshold is None:
        options.results, options.threshold = None, options.results
    if (options.results is None) == (options.ensemble is None):
        parser.error("name one file of predictions, or several after --ensemble")
    if options.out and not options.ensemble:
        parser.error("--out goes with --ensemble")
    if options.scores and (options.ensemble or options.threshold):
        parser.error("--scores goes without a threshold and without --ensemble, which need probabilities")
    threshold = number(options.threshold or "0.5")
    if not 0 <= threshold <= 1:
        parser.error(f"the threshold '{options.threshold}' should be a number from 0 to 1")
    options.threshold = None if options.scores else threshold
    options.predictions = options.ensemble or [Path(options.results)]
    out_of_fold = options.predictions[0].name == "held_out.csv"
    if options.truth is None and not out_of_fold:
        own = options.predictions[0].parent / "ground_truth.csv"
        options.truth = own if own.exists() else Path("ground_truth.csv")
    unused = options.scores or out_of_fold
    options.held_out, options.warnings = ([], []) if unused else held_out_files(options.predictions)
    read = [*options.predictions, *options.held_out, *filter(None, (options.truth, options.compare))]
    for name in (options.out.name, "held_out.csv") if options.out else ():
        if (file := options.out.with_name(name)).resolve() in map(Path.resolve, read):
            parser.error(f"--out {options.out} would overwrite {file}, which is read; name a file in another folder")
    return options


@dataclass
class Loaded:
    """What was read: predictions joined with the truth, and the warnings about them.

    Attributes:
        joined: the predictions to report on; see ``derma.tables.join``.
        truth: as it was read.
        warnings: one sentence each.
        parts: the scores of an ensemble's files and of their mean; empty for a single file.
        held_out: out-of-fold predictions joined with the truth of their Ids, if there are any.
    """

    joined: pd.DataFrame
    truth: Table
    warnings: list[str]
    parts: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    held_out: pd.DataFrame | None = None


def load(options: argparse.Namespace) -> Loaded:
    """Read the predictions, the truth and what is held out, and average an ensemble."""
    tables = [read_table(file, scores=options.scores) for file in options.predictions]
    truth = read_table(options.truth, truth=True) if options.truth else truth_from_ids(tables[0])
    held_out = [read_table(file) for file in options.held_out]
    joined = [join(table, truth) for table in tables]
    warnings = [*options.warnings, *(warning for table in (*tables, *held_out) for warning in table.warnings)]
    loaded = Loaded(average(joined), truth, warnings)
    for category in defined(loaded.joined):
        count, images = int(loaded.joined[f"true_{category}"].sum()), len(loaded.joined)
        if min(count, images - count) < FEW:
            what = f"{count} {PLURALS[category]} among {images} images: too few to trust an interval"
            warnings.append(f"{truth.file}: {what}.")
    if options.ensemble:
        loaded.parts = {str(table.file): scoring.score(part) for table, part in zip(tables, joined, strict=True)}
        loaded.parts["mean of probabilities"] = scoring.score(loaded.joined)
    if any(set(table.values.index) != set(held_out[0].values.index) for table in held_out):
        warnings.append("No held_out.csv is averaged: they hold different images; train the runs on the same folds.")
        held_out = []
    if held_out:
        loaded.held_out = average([join(table, truth_from_ids(held_out[0])) for table in held_out])
        if shared := int(loaded.held_out.index.isin(loaded.joined.index).sum()):
            warnings.append(f"{options.held_out[0]}: {shared} of its images are scored too, so it is not held out.")
    return loaded


def known(values: dict) -> list[tuple]:
    """Return the categories that are defined, each with its value."""
    return [(category, value) for category, value in values.items() if value is not None]


def print_report(report: scoring.Report, joined: pd.DataFrame) -> None:
    """Print the scores first, in the three lines that other programs may read, then their intervals and the rest."""
    lacking = "".join(NAMES[category] for category in (1, 2) if report.areas[category] is None)  # at most one
    for category, area in report.areas.items():
        value = f"{area.value:.3f}" if area else f"not defined (no {lacking} among {len(joined):,} images)"
        print(f"Category {category} Score: {value}")
    positives = {1: int(joined["true_1"].sum()), 2: int(joined["true_2"].sum())}
    print(
        f"\n{len(joined):,} images: {positives[1]:,} melanomas, {positives[2]:,} seborrheic keratoses, "
        f"{len(joined) - positives[1] - positives[2]:,} nevi. Brackets are 95 % confidence intervals."
    )
    # Only the challenge's own test images give a comparable rank.
    official = (len(joined), positives[1], positives[2]) == (600, 117, 90)
    print(f"\n{'category':24} {'AUC':22} {'by':10} {'bootstrap':18} rank among the challenge's 23")
    for category, area in known(report.areas):
        check = report.bootstrapped[category]
        print(
            f"{category} {NAMES[category]:22} {area!s:22} {scoring.METHODS[category]:10} "
            f"{f'[{check.low:.3f}, {check.high:.3f}]':18} {report.ranks[category] if official else '-'}"
        )
    if report.points:
        print_points(report.points)
        found = [f"{each.threshold:.6g} ({each.matrix[1, 1] / positives[1]:.3f})" for each in report.points[1:]]
        print(
            "The first row is at the threshold asked for, or 0.5; the others are at the challenge's sensitivities,\n"
            "interpolated on the ROC curve. Thresholds that reach them on these images, with their own sensitivity:\n"
            f"{', '.join(found)}. PPV and NPV hold where {positives[1] / len(joined):.1%} of lesions are melanomas."
        )
    print(f"\n{'':24} {'average precision':18} {'AUC, sens. > 80 %':18} {'Brier score':12} expected calibration error")
    for category, precision in known(report.average_precision):
        calibration = report.calibration.get(category)
        brier, error = (f"{calibration.brier:.3f}", f"{calibration.error:.3f}") if calibration else "--"
        above = report.areas_above_80[category]
        print(f"{category} {NAMES[category]:22} {precision:<18.3f} {above:<18.3f} {brier:12} {error}")


def print_points(points: list[scoring.OperatingPoint]) -> None:
    """Print a row for each threshold, or given sensitivity, of melanoma."""
    print(f"\n{'melanoma at':18} {'sensitivity':21} {'specificity':21} {'PPV':21} {'NPV':21} balanced accuracy")
    for point in points:
        name = f"sensitivity {point.goal:g}" if point.goal else f"threshold {point.threshold:.6g}"
        found = f"{point.goal:.3f}" if point.goal else str(point.sensitivity)
        rates = " ".join(f"{rate!s:21}" for rate in (found, point.specificity, point.ppv, point.npv))
        print(f"{name:18} {rates} {point.balanced_accuracy:.3f}")


def print_out_of_fold(chosen: scoring.OutOfFold, files: list[Path]) -> None:
    """Print what out-of-fold predictions are worth, and what they decide."""
    print(f"\nHeld out: mean AUC {chosen.area} on {chosen.images:,} images of {' and '.join(map(str, files))}.")
    if chosen.point:
        print_points([chosen.point])
        print(f"This threshold finds {scoring.GOAL:.0%} of the held-out melanomas. The row shows the images scored.")
    names = (NAMES[1], "nevus", NAMES[2])
    offsets = ", ".join(f"{name} {each:+.3f}" for name, each in zip(names, chosen.calibrator.offsets, strict=True))
    print(
        f"Calibrated on the held-out images: temperature {chosen.calibrator.temperature:.3f}, offsets {offsets}.\n"
        f"\n{'on the images scored':24} {'calibration error before':25} after"
    )
    for category, before in known(chosen.before):
        print(f"{category} {NAMES[category]:22} {before:<25.3f} {chosen.after[category]:.3f}")


def print_parts(parts: dict[str, tuple[float, float, float]]) -> None:
    """Print the scores of an ensemble's files and of their mean."""
    width = max(map(len, parts))
    print(f"\n{'ensemble':{width}}  category 1  category 2  category 3")
    for name, scores in parts.items():
        first, second, mean = ("-" if math.isnan(each) else f"{each:.3f}" for each in scores)
        print(f"{name:{width}}  {first:10}  {second:10}  {mean}")


def print_comparison(comparison: dict[int, scoring.Comparison], other: Path) -> None:
    """Print differences in AUC, their intervals and p values."""
    print(f"\n{'minus ' + str(other):24} {'difference in AUC':28} p (two-sided, paired)")
    for category, result in known(comparison):
        each, p = result.difference, "-" if math.isnan(result.p) else f"{result.p:.2g}"
        print(
            f"{category} {NAMES[category]:22} {each.value:+.3f} [{each.low:+.3f}, {each.high:+.3f}]     "
            f"{p} ({scoring.METHODS[category]})"
        )


def draw(joined: pd.DataFrame, report: scoring.Report, options: argparse.Namespace) -> list[str]:
    """Draw the figures; returns their files."""
    import matplotlib

    matplotlib.use("agg")  # no window, and no search for a display
    from derma import figures

    files = [options.figures / "roc.png"]
    figures.roc(joined, report.points, files[0])
    if report.calibration:
        files.append(options.figures / "reliability.png")
        figures.reliability(report.calibration, files[-1])
    if report.points:
        files.append(options.figures / "melanoma_confusion.png")
        title = f"Melanoma at threshold {report.points[0].threshold:.3g}"
        figures.confusion(report.points[0].matrix, ["other", "melanoma"], title, files[-1])
    return list(map(str, files))


def run(options: argparse.Namespace) -> None:
    """Do what the command line says."""
    loaded = load(options)
    joined, comparison = loaded.joined, {}
    if options.compare:
        other = read_table(options.compare, scores=options.scores)
        loaded.warnings += other.warnings
        comparison = scoring.compare(joined, join(other, loaded.truth))
    for warning in loaded.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    if options.out:
        truth = loaded.truth.values.astype(int).assign(Id=loaded.truth.identifiers)
        write_predictions(options.out, joined, truth, loaded.held_out)
    report = scoring.report(joined, options.threshold)
    out_of_fold = None
    if loaded.held_out is not None:
        out_of_fold = scoring.out_of_fold(loaded.held_out, joined)
    drawn = str(options.figures) != "none"
    if options.json:
        melanomas, keratoses = (int(joined[f"true_{category}"].sum()) for category in (1, 2))
        everything = {
            "images": {"all": len(joined), "melanoma": melanomas, "keratosis": keratoses},
            **vars(report),
            "methods": scoring.METHODS,
            "out_of_fold": out_of_fold,
            "parts": loaded.parts,
            "comparison": comparison,
            "warnings": loaded.warnings,
            "figures": [],
        }
        try:
            everything["figures"] = draw(joined, report, options) if drawn else []
        finally:  # print the scores even where figures cannot be written
            print(json.dumps(as_json(everything), indent=2))
        return
    print_report(report, joined)
    if out_of_fold:
        print_out_of_fold(out_of_fold, options.held_out)
    if loaded.parts:
        print_parts(loaded.parts)
    if comparison:
        print_comparison(comparison, options.compare)
    if options.out:
        held_out = "" if loaded.held_out is None else ", held_out.csv"
        print(f"\nWritten to {options.out.parent}: {options.out.name}, ground_truth.csv{held_out}")
    if drawn:
        print("\nFigures: " + ", ".join(draw(joined, report, options)))


def main(arguments: list[str] | None = None) -> int:
    """Score as the command line says; returns the exit code: 0, or 2 with one sentence that says what is wrong."""
    options = parse(arguments)
    try:
        run(options)
    except TableError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"Cannot write: {error}; name another place.", file=sys.stderr)
    else:
        return 0
    return 2


if __name__ == "__main__":
    run_main(main)
