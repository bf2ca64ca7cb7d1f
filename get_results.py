"""Score predictions for part 3 of the ISIC 2017 challenge, with confidence intervals.

    python get_results.py results.csv                            # the three scores and all that goes with them
    python get_results.py results.csv 0.4                        # melanoma at another threshold
    python get_results.py results.csv --compare other.csv        # is one better than the other, or is it luck?
    python get_results.py --ensemble a.csv b.csv --out mean.csv  # score the mean of several predictions, and keep it
    python get_results.py entry.csv --truth ISIC-2017_Test_v2_Part3_GroundTruth.csv --json

The truth comes from ground_truth.csv unless --truth names another file; rows are joined on the Id's file name. Figures
go to images/scores/.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from derma import scoring
from derma.tables import TableError, join, read_table, write_table

NAMES = {1: "melanoma", 2: "seborrheic keratosis", 3: "mean of the two"}
METHODS = {1: "DeLong", 2: "DeLong", 3: "bootstrap"}


def number_from_0_to_1(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"the threshold should be a number from 0 to 1, not '{text}'")
    return number


def positive_integer(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"should be a whole number above 0, not '{text}'")
    return int(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The scores of part 3 of the ISIC 2017 challenge, with 95 % confidence intervals.",
        epilog="Columns: Id,task_1,task_2 or, with or without a header, image_id,melanoma,seborrheic_keratosis.",
    )
    parser.add_argument("results", type=Path, nargs="?", help="predictions, as probabilities")
    parser.add_argument(
        "threshold", type=number_from_0_to_1, nargs="?", default=0.5, help="melanoma at or above it (default: 0.5)"
    )
    parser.add_argument(
        "--truth", type=Path, default=Path("ground_truth.csv"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--compare", type=Path, metavar="FILE", help="test the difference to these predictions")
    parser.add_argument("--ensemble", type=Path, nargs="+", metavar="FILE", help="score the mean of these predictions")
    parser.add_argument("--by-rank", action="store_true", help="with --ensemble: average ranks, not probabilities")
    parser.add_argument("--out", type=Path, metavar="FILE", help="with --ensemble: write the averaged predictions")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead of text")
    parser.add_argument(
        "--figures",
        type=Path,
        default=Path("images/scores"),
        metavar="DIR",
        help="default: %(default)s; 'none' for none",
    )
    parser.add_argument("--show", action="store_true", help="also open the figures in windows")
    parser.add_argument("--resamples", type=positive_integer, default=scoring.RESAMPLES, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    options = parser.parse_args(arguments)
    if (options.results is None) == (options.ensemble is None):
        parser.error("name one file of predictions, or several after --ensemble")
    if (options.out or options.by_rank) and not options.ensemble:
        parser.error("--out and --by-rank go with --ensemble")
    return options


def load(options: argparse.Namespace) -> tuple[pd.DataFrame, list[str], dict[str, tuple[float, float, float]]]:
    """Return the joined predictions, warnings, and the scores of an ensemble's parts and of its two kinds of mean."""
    truth = read_table(options.truth, truth=True)
    if options.results:
        table = read_table(options.results)
        return join(table, truth), list(table.warnings), {}
    tables = [read_table(file) for file in options.ensemble]
    joined = [join(table, truth) for table in tables]
    parts = {str(table.file): scoring.score(part) for table, part in zip(tables, joined, strict=True)}
    means = {}
    for name, by_rank in (("mean of probabilities", False), ("mean of ranks", True)):
        means[name] = joined[0].assign(**scoring.ensemble(joined, by_rank))
        parts[name] = scoring.score(means[name])
    chosen = means["mean of ranks" if options.by_rank else "mean of probabilities"]
    if options.out:
        write_table(chosen[["task_1", "task_2"]].reset_index(), options.out)
    return chosen, [warning for table in tables for warning in table.warnings], parts


def print_report(report: scoring.Report, joined: pd.DataFrame) -> None:
    for category, area in report.areas.items():
        print(f"Category {category} Score: {area.value:.3f}")
    positives = {1: int(joined["true_1"].sum()), 2: int(joined["true_2"].sum())}
    print(
        f"\n{len(joined):,} pictures: {positives[1]:,} melanomas, {positives[2]:,} seborrheic keratoses, "
        f"{len(joined) - positives[1] - positives[2]:,} nevi. Brackets are 95 % confidence intervals."
    )
    print(f"\n{'category':24} {'AUC':22} {'by':10} {'bootstrap':18} rank among the challenge's 23")
    for category, area in report.areas.items():
        check = report.bootstrapped[category]
        print(
            f"{category} {NAMES[category]:22} {area!s:22} {METHODS[category]:10} "
            f"[{check.low:.3f}, {check.high:.3f}]     {report.ranks[category]}"
        )
    print(f"\n{'melanoma at':12} {'sensitivity':21} {'specificity':21} {'PPV':21} {'NPV':21} balanced accuracy")
    for point in report.points:
        rates = " ".join(f"{rate!s:21}" for rate in (point.sensitivity, point.specificity, point.ppv, point.npv))
        print(f"{point.threshold:<12.4g} {rates} {point.balanced_accuracy:.3f}")
    goals = ", ".join(map(str, scoring.CHALLENGE_SENSITIVITIES))
    print(f"The first threshold was given; the others reach the challenge's sensitivities ({goals}) on these pictures.")
    print(f"\n{'':24} {'average precision':18} {'Brier score':12} expected calibration error")
    for category, calibration in report.calibration.items():
        print(
            f"{category} {NAMES[category]:22} {report.average_precision[category]:<18.3f} {calibration.brier:<12.3f} "
            f"{calibration.error:.3f}"
        )


def print_parts(parts: dict[str, tuple[float, float, float]]) -> None:
    width = max(map(len, parts))
    print(f"\n{'ensemble':{width}}  category 1  category 2  category 3")
    for name, (first, second, mean) in parts.items():
        print(f"{name:{width}}  {first:<10.3f}  {second:<10.3f}  {mean:.3f}")


def print_comparison(comparison: dict[int, scoring.Comparison], other: Path) -> None:
    print(f"\n{'minus ' + str(other):24} {'difference in AUC':28} p (two-sided, paired)")
    for category, result in comparison.items():
        each = result.difference
        print(
            f"{category} {NAMES[category]:22} {each.value:+.3f} [{each.low:+.3f}, {each.high:+.3f}]     "
            f"{result.p:.2g} ({METHODS[category]})"
        )


def as_json(value: object) -> object:
    """What json.dumps cannot write by itself; numbers that are not defined become null."""
    if isinstance(value, dict):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, pd.DataFrame):
        return value.to_dict(orient="records")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw(joined: pd.DataFrame, report: scoring.Report, options: argparse.Namespace) -> list[str]:
    """Draw the figures; returns their files."""
    import matplotlib

    if not options.show:
        matplotlib.use("agg")  # no window, and no search for a display
    from matplotlib import pyplot as plt

    from derma import figures

    files = {name: options.figures / f"{name}.png" for name in ("roc", "reliability", "melanoma_confusion")}
    figures.roc(joined, report.points, files["roc"])
    figures.reliability(report.calibration, files["reliability"])
    point = report.points[0]
    title = f"Melanoma at threshold {point.threshold:g}"
    figures.confusion(point.matrix, ["other", "melanoma"], title, files["melanoma_confusion"])
    if options.show:
        plt.show()
    return [str(file) for file in files.values()]


def run(options: argparse.Namespace) -> None:
    joined, warnings, parts = load(options)
    comparison = None
    if options.compare:
        other = read_table(options.compare)
        warnings += other.warnings
        second = join(other, read_table(options.truth, truth=True))
        comparison = scoring.compare(joined, second, options.resamples, options.seed)
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    report = scoring.report(joined, options.threshold, options.resamples, options.seed)
    if options.json:
        everything = {**asdict(report), "parts": parts, "warnings": warnings}
        if comparison:
            everything["comparison"] = {category: asdict(result) for category, result in comparison.items()}
        print(json.dumps(as_json(everything), indent=2))
    else:
        print_report(report, joined)
        if parts:
            print_parts(parts)
        if comparison:
            print_comparison(comparison, options.compare)
    if str(options.figures) != "none":
        files = draw(joined, report, options)
        if not options.json:
            print("\nFigures: " + ", ".join(files))


def main(arguments: list[str] | None = None) -> int:
    """Score as the command line says; returns the exit code: 0, or 2 with one sentence for what cannot be done."""
    options = parse(arguments)
    try:
        run(options)
    except TableError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Nothing could be written there ({error}); name another place.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
