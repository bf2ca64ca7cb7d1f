"""Score predictions the way part 3 of the ISIC 2017 challenge did, with 95 % confidence intervals.

Category 1 is melanoma against the rest, category 2 seborrheic keratosis against the rest, each by the area under the
ROC curve (AUC); category 3 is their mean (https://challenge.isic-archive.com/landing/2017/44/). Without torch.

Arguments that recur: ``truth`` is (N,) of 0 and 1, both present; ``scores`` (N,) numbers, higher for positives;
``probabilities`` (N,) in [0, 1]; ``joined`` what ``derma.tables.join`` returns: columns ``task_1``, ``task_2``,
``true_1`` and ``true_2``. What is given by category is None where that category is not defined, such as 2
and 3 without a keratosis; see ``derma.tables.defined``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import auc, average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from derma.calibration import GOAL, Calibrator, fit_calibrator
from derma.tables import defined

Z = 1.959963984540054  # the standard normal's 97.5 % quantile
RESAMPLES = 2000  # of the bootstrap
METHODS = {1: "DeLong", 2: "DeLong", 3: "bootstrap"}  # of the intervals and tests of the three categories
CHALLENGE_SENSITIVITIES = (0.82, 0.89, 0.95)  # at which the challenge reported melanoma's specificity

# The 23 entries' scores in each category, each list best first (https://arxiv.org/abs/1710.05006).
LEADERBOARD = {
    1: (0.874, 0.870, 0.868, 0.856, 0.836, 0.830, 0.805, 0.804, 0.791, 0.789, 0.786, 0.783, 0.782, 0.765, 0.759, 0.757,
        0.715, 0.684, 0.636, 0.623, 0.500, 0.495, 0.475),
    2: (0.965, 0.953, 0.943, 0.942, 0.935, 0.921, 0.911, 0.911, 0.908, 0.886, 0.885, 0.881, 0.875, 0.867, 0.855, 0.840,
        0.827, 0.817, 0.817, 0.774, 0.687, 0.498, 0.456),
    3: (0.911, 0.910, 0.908, 0.896, 0.886, 0.886, 0.851, 0.850, 0.836, 0.829, 0.825, 0.823, 0.823, 0.823, 0.816, 0.811,
        0.804, 0.750, 0.705, 0.658, 0.655, 0.497, 0.465),
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % confidence interval, which always holds it; NaN where it is not defined."""

    value: float
    low: float
    high: float

    def __post_init__(self):
        # Rounding, and a bootstrap that is biased, has few resamples or many ties, can leave the number just outside.
        for name, bound in (("low", min), ("high", max)):
            object.__setattr__(self, name, bound(getattr(self, name), self.value))

    def __str__(self) -> str:
        return "-" if math.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison:
    """First minus second, with its interval and two-sided p value."""

    difference: Estimate
    p: float


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold, or a given sensitivity, gives for one binary question.

    Attributes:
        threshold: predicted positive at or above it.
        matrix: (2, 2) counts at it; rows are the truth (negative, positive), columns the prediction.
        sensitivity, specificity: share of the positives, negatives that are predicted right.
        ppv, npv: share of the positive, negative predictions that are right.
        balanced_accuracy: mean of sensitivity and specificity.
        goal: the sensitivity at which the rates hold, see :func:`points_at_sensitivities`; None: at the threshold.
    """

    threshold: float
    matrix: np.ndarray
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    balanced_accuracy: float
    goal: float | None = None


@dataclass(frozen=True)
class Calibration:
    """How well probabilities match observed frequencies.

    Attributes:
        brier: mean squared difference to the truth, 0 to 1 (Brier, 1950).
        error: expected calibration error, 0 to 1: mean distance between predicted and observed share, over equal bins
            of probability, weighted by their sizes (Naeini et al., 2015, https://doi.org/10.1609/aaai.v29i1.9602).
        bins: a row for each bin that is not empty: ``predicted`` mean, ``observed`` share with its interval ``low`` and
            ``high``, and ``count``.
    """

    brier: float
    error: float
    bins: pd.DataFrame


def score(joined: pd.DataFrame) -> tuple[float, float, float]:
    """Return the scores of categories 1, 2 and 3, each in [0, 1]; NaN where a category is not defined."""
    first, second = (math.nan if area is None else float(area) for area in _each(joined, roc_auc_score).values())
    return first, second, (first + second) / 2


def _each(joined: pd.DataFrame, measure: Callable) -> dict:
    """Return ``measure(truth, scores)`` of categories 1 and 2."""
    found = {k: measure(joined[f"true_{k}"].to_numpy(), joined[f"task_{k}"].to_numpy()) for k in defined(joined)}
    return {k: found.get(k) for k in (1, 2)}


def mean_auc(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Return category 3's score of (N,) class indices and (N, 3) probabilities; NaN where a category has one class."""
    return float(np.mean([roc_auc_score(targets == k, probabilities[:, k]) for k in (0, 2)]))


def rank_in_challenge(category: int, area: float) -> int:
    """Return the place that a score would have had among the 23 entries: 1 is best, 24 is last."""
    return 1 + sum(entry > round(area, 3) for entry in LEADERBOARD[category])


def placements(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return DeLong's structural components of the AUC, in O(n log n).

    Returns:
        For each positive the share of negatives below it, and for each negative the share of positives above it, ties
        counting half; in the order of ``scores``. The mean of either is the AUC. Source: DeLong, DeLong and
        Clarke-Pearson, 1988, https://doi.org/10.2307/2531595.
    """
    truth, scores = np.asarray(truth).astype(bool), np.asarray(scores, dtype=float)
    positives, negatives = np.sort(scores[truth]), np.sort(scores[~truth])
    below, above = (
        (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2 * len(others))
        for values, others in ((scores[truth], negatives), (scores[~truth], positives))
    )
    return below, 1 - above


def _covariance(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """Covariance of two AUCs on the same images, from their structural components."""
    # A single positive (or negative) leaves its part of the variance unknown: NaN, and so the interval.
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = [(a - a.mean()) @ (b - b.mean()) / np.float64(len(a) - 1) / len(a) for a, b in zip(first, second)]
    return float(sum(parts))


def delong(truth: np.ndarray, scores: np.ndarray) -> Estimate:
    """Return the AUC with DeLong's interval, cut to [0, 1]; a single positive or negative leaves all of [0, 1]."""
    parts = placements(truth, scores)
    area, half = float(roc_auc_score(truth, scores)), Z * math.sqrt(_covariance(parts, parts))
    # As second argument, NaN loses the comparison, so the bound stays.
    return Estimate(area, max(0.0, area - half), min(1.0, area + half))


def delong_test(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compare the AUCs of two (N,) scores of the same images by DeLong's paired test; limits as :func:`delong`'s."""
    a, b = placements(truth, first), placements(truth, second)
    difference = float(a[0].mean() - b[0].mean())
    # Rounding can make the variance negative where the two rank alike.
    error = float(np.sqrt(np.maximum(0.0, _covariance(a, a) + _covariance(b, b) - 2 * _covariance(a, b))))
    if error < 1e-12:  # nothing varies, so there is no test: both the same, or one perfect and the other its reverse
        p = 1.0 if abs(difference) < 1e-12 else math.nan
    else:
        p = math.erfc(abs(difference) / error / math.sqrt(2))
    return Comparison(Estimate(difference, max(-1.0, difference - Z * error), min(1.0, difference + Z * error)), p)


def bootstrap_areas(joined: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Resample the images within each of the three classes and return the AUCs of every resample.

    Args:
        columns: predictions to measure; a name that ends in 1 is of category 1, and so on. All come from the same
            resamples, so differences between columns are paired.

    Returns:
        (resamples, columns) areas in [0, 1].
    """
    rng = np.random.default_rng(0)
    classes = (joined["true_1"] + 2 * joined["true_2"]).to_numpy().astype(int)
    scores = joined[list(columns)].to_numpy()
    orders = np.argsort(scores, axis=0, kind="stable").T
    firsts = [np.flatnonzero(np.diff(np.sort(each), prepend=-np.inf)) for each in scores.T]
    areas = np.empty((RESAMPLES, len(columns)))
    step = max(1, 4_000_000 // len(classes))  # bounds the memory of a chunk
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn = np.empty((rows, len(classes)))
        for group in np.unique(classes):
            members = np.flatnonzero(classes == group)
            drawn[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=rows)
        for number, column in enumerate(columns):
            chosen = np.where(classes == int(column[-1]), drawn, 0)
            # counts (rows, distinct scores in rising order) of the positives and of the negatives
            positive, negative = (
                np.add.reduceat(part[:, orders[number]], firsts[number], axis=1) for part in (chosen, drawn - chosen)
            )
            pairs = (positive * (negative.cumsum(axis=1) - negative / 2)).sum(axis=1)  # ties count half
            areas[start : start + rows, number] = pairs / (positive.sum(axis=1) * negative.sum(axis=1))
    return areas


def percentile_interval(value: float, resampled: np.ndarray) -> Estimate:
    """Return a number with the interval that holds the middle 95 % of its resamples (Efron, 1979)."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))


def bootstrap_test(difference: float, resampled: np.ndarray) -> Comparison:
    """Return a difference with its interval and the two-sided p value from paired resamples of it."""
    share = min((resampled <= 0).mean(), (resampled >= 0).mean())
    # Never 0: with B resamples the smallest p that can be resolved is 2 / (B + 1).
    p = min(1.0, 2 * (share * len(resampled) + 1) / (len(resampled) + 1))
    return Comparison(percentile_interval(difference, resampled), float(p))


def _resampled_rates(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, (resamples, thresholds + 1), of resampled negatives and positives.

    Thresholds fall from above the highest score to the lowest; beyond 1,000 distinct scores neighbours are grouped.
    """
    rng, truth, values = np.random.default_rng(0), np.asarray(truth).astype(bool), np.unique(scores)
    if len(values) > 1000:
        values = np.unique(np.quantile(scores, np.linspace(0, 1, 1000), method="higher"))
    ranks = np.searchsorted(values, scores)
    rates = []
    for group in (~truth, truth):
        counts = np.bincount(ranks[group], minlength=ranks.max() + 1)[::-1]
        drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES).cumsum(axis=1)
        rates.append(np.hstack([np.zeros((RESAMPLES, 1)), drawn / counts.sum()]))
    return rates[0], rates[1]


def roc_band(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a pointwise 95 % band of the ROC curve by the bootstrap, positives and negatives resampled separately.

    It is given as three arrays of 201: false positive rates from 0 to 1, and the sensitivity's low and high at each.
    """
    grid = np.linspace(0, 1, 201)
    curves = [np.interp(grid, *each) for each in zip(*_resampled_rates(truth, scores))]
    low, high = np.quantile(curves, (0.025, 0.975), axis=0)
    curve = np.interp(grid, *roc_curve(truth, scores)[:2])
    return grid, np.minimum(low, curve), np.maximum(high, curve)


def _false_rate(sensitivity: float, false: np.ndarray, true: np.ndarray) -> float:
    """The least false positive rate at a sensitivity in (0, 1], interpolated between the points of a ROC curve."""
    return np.interp(-sensitivity, -true[::-1], false[::-1])  # reversed, since np.interp takes the last of equal ones


def area_above_sensitivity(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the part of the AUC where the sensitivity is at least 0.8, as the challenge's scorer defines it.

    It is the area under the ROC curve to the right of that point, down to the axis: 0 to the AUC. Source:
    ``auc_above_sensitivity`` of https://github.com/ImageMarkup/isic-challenge-scoring.
    """
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    above = true >= 0.8
    return float(auc(np.append(_false_rate(0.8, false, true), false[above]), np.append(0.8, true[above])))


@dataclass(frozen=True)
class Report:
    """The measures of one set of predictions.

    Attributes:
        areas: categories 1 and 2 with DeLong's interval, category 3 with the bootstrap's.
        bootstrapped: the three by the bootstrap alone, as a cross-check.
        ranks: their places among the 23 entries.
        points: melanoma at the given threshold, and at :func:`points_at_sensitivities` of the challenge, if any.
        average_precision, areas_above_80, calibration: of melanoma (1) and of seborrheic keratosis (2); the second is
            :func:`area_above_sensitivity`.

    Without a threshold, ``points`` and ``calibration`` are empty: the rest only depends on the order of predictions.
    """

    areas: dict[int, Estimate | None]
    bootstrapped: dict[int, Estimate | None]
    ranks: dict[int, int | None]
    points: list[OperatingPoint]
    average_precision: dict[int, float | None]
    areas_above_80: dict[int, float | None]
    calibration: dict[int, Calibration | None]


def _bootstrap_scores(joined: pd.DataFrame) -> dict[int, Estimate | None]:
    known, areas = defined(joined), score(joined)
    resampled = bootstrap_areas(joined, [f"task_{k}" for k in known])
    drawn = dict(zip(known, resampled.T)) | ({3: resampled.mean(axis=1)} if len(known) == 2 else {})
    return {k: percentile_interval(areas[k - 1], drawn[k]) if k in drawn else None for k in (1, 2, 3)}


def report(joined: pd.DataFrame, threshold: float | None = 0.5) -> Report:
    """Measure predictions, melanoma first at ``threshold``; None if they are no probabilities."""
    bootstrapped = _bootstrap_scores(joined)
    areas = _each(joined, delong) | {3: bootstrapped[3]}
    points = []
    if threshold is not None and areas[1]:
        melanoma = joined["true_1"].to_numpy(), joined["task_1"].to_numpy()
        points = [operating_point(*melanoma, threshold), *points_at_sensitivities(*melanoma)]
    return Report(
        areas=areas,
        bootstrapped=bootstrapped,
        ranks={k: area and rank_in_challenge(k, area.value) for k, area in areas.items()},
        points=points,
        average_precision=_each(joined, average_precision_score),
        areas_above_80=_each(joined, area_above_sensitivity),
        calibration={} if threshold is None else _each(joined, calibration),
    )


@dataclass(frozen=True)
class OutOfFold:
    """What out-of-fold predictions decide, and what it gives on other images.

    Attributes:
        images, area: number of out-of-fold predictions, and their category 3.
        point: what melanoma's threshold gives on the other images; None if no melanoma is among them.
        calibrator: fitted out of fold.
        before, after: expected calibration error of categories 1 and 2 on the other images, without and with it.
    """

    images: int
    area: Estimate
    point: OperatingPoint | None
    calibrator: Calibrator
    before: dict[int, float | None]
    after: dict[int, float | None]


def three_classes(joined: pd.DataFrame) -> np.ndarray:
    """Return (N, 3) probabilities of melanoma, nevus (what the other two leave, at least 0), seborrheic keratosis."""
    first, second = joined["task_1"].to_numpy(), joined["task_2"].to_numpy()
    return np.stack([first, np.maximum(1 - first - second, 0), second], axis=1)


def out_of_fold(held_out: pd.DataFrame, joined: pd.DataFrame) -> OutOfFold:
    """Choose a threshold and fit a calibration on ``held_out``, and measure both on ``joined``, other images."""
    threshold = threshold_for_sensitivity(held_out["true_1"], held_out["task_1"], GOAL)
    targets = np.select([held_out["true_1"] == 1, held_out["true_2"] == 1], [0, 2], 1)
    calibrator = fit_calibrator(targets, three_classes(held_out))
    first, _, second = calibrator(three_classes(joined)).T
    return OutOfFold(
        images=len(held_out),
        area=_bootstrap_scores(held_out)[3],
        point=operating_point(joined["true_1"], joined["task_1"], threshold) if 1 in defined(joined) else None,
        calibrator=calibrator,
        before=_each(joined, lambda *pair: calibration(*pair).error),
        after=_each(joined.assign(task_1=first, task_2=second), lambda *pair: calibration(*pair).error),
    )


def compare(first: pd.DataFrame, second: pd.DataFrame) -> dict[int, Comparison | None]:
    """Compare two predictions of the same images, with one truth: by DeLong's test, category 3 by the bootstrap."""
    both = first.join(second[["task_1", "task_2"]].add_prefix("other_"))
    result = {k: delong_test(both[f"true_{k}"], both[f"task_{k}"], both[f"other_task_{k}"]) for k in defined(first)}
    if len(result) < 2:
        return {k: result.get(k) for k in (1, 2, 3)}
    weights = {"task_1": 0.5, "task_2": 0.5, "other_task_1": -0.5, "other_task_2": -0.5}
    resampled = bootstrap_areas(both, list(weights))
    result[3] = bootstrap_test(score(first)[2] - score(second)[2], resampled @ list(weights.values()))
    return result


def balanced_accuracy_interval(targets: np.ndarray, predictions: np.ndarray) -> Estimate:
    """Return the mean recall of the classes that occur in (N,) class indices, with a bootstrap within each class."""
    rng = np.random.default_rng(0)
    right = [predictions[targets == k] == k for k in np.unique(targets)]
    drawn = np.mean([rng.choice(each, (RESAMPLES, len(each))).mean(axis=1) for each in right], axis=0)
    return percentile_interval(np.mean([each.mean() for each in right]), drawn)


def wilson(successes: int, trials: int) -> Estimate:
    """Return a share with Wilson's interval (1927, https://doi.org/10.1080/01621459.1927.10502953)."""
    if trials == 0:
        return Estimate(math.nan, math.nan, math.nan)
    return Estimate(successes / trials, *binomtest(successes, trials).proportion_ci(method="wilson"))


def operating_point(truth: np.ndarray, probabilities: np.ndarray, threshold: float) -> OperatingPoint:
    """Apply a threshold in [0, 1] to probabilities; the intervals are Wilson's."""
    positive = np.asarray(truth).astype(bool)
    called = np.asarray(probabilities) >= threshold
    matrix = np.bincount(2 * positive + called, minlength=4).reshape(2, 2)
    (tn, fp), (fn, tp) = matrix.tolist()
    sensitivity, specificity = wilson(tp, tp + fn), wilson(tn, tn + fp)
    return OperatingPoint(
        threshold, matrix, sensitivity, specificity, wilson(tp, tp + fp), wilson(tn, tn + fn),
        (sensitivity.value + specificity.value) / 2,
    )  # fmt: skip


def threshold_for_sensitivity(truth: np.ndarray, probabilities: np.ndarray, goal: float) -> float:
    """Return the highest threshold that finds at least a share ``goal`` of the positives, in (0, 1]."""
    positives = np.sort(np.asarray(probabilities)[np.asarray(truth).astype(bool)])[::-1]
    needed = math.ceil(goal * len(positives) - 1e-9)  # 0.95 * 20 is a hair above 19 in binary
    return float(positives[max(needed, 1) - 1])


def points_at_sensitivities(truth: np.ndarray, probabilities: np.ndarray) -> list[OperatingPoint]:
    """Return what holds at the challenge's sensitivities, interpolated on the ROC curve, with bootstrap intervals.

    A threshold seldom has exactly one of them, and one chosen on the images that it is measured on is itself uncertain:
    with it fixed, Wilson's intervals would be far too narrow. ``threshold`` and ``matrix`` are of
    :func:`threshold_for_sensitivity`.
    """
    rates = _resampled_rates(truth, probabilities)
    curve = roc_curve(truth, probabilities, drop_intermediate=False)[:2]
    positives, negatives, points = np.sum(truth), np.sum(1 - np.asarray(truth)), []
    for goal in CHALLENGE_SENSITIVITIES:
        point = operating_point(truth, probabilities, threshold_for_sensitivity(truth, probabilities, goal))
        false_rate = np.array([_false_rate(goal, *each) for each in (curve, *zip(*rates))])
        hits, alarms = goal * positives, false_rate * negatives
        values = {
            "specificity": 1 - false_rate,
            "ppv": hits / (hits + alarms),
            "npv": (negatives - alarms) / (negatives - alarms + positives - hits),
        }
        estimates = {name: percentile_interval(each[0], each[1:]) for name, each in values.items()}
        balanced = (goal + estimates["specificity"].value) / 2
        given = Estimate(goal, goal, goal)
        points.append(replace(point, sensitivity=given, balanced_accuracy=balanced, goal=goal, **estimates))
    return points


def calibration(truth: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """Compare probabilities with observed shares, in ten bins of equal width over [0, 1]."""
    truth, probabilities = np.asarray(truth, dtype=float), np.asarray(probabilities, dtype=float)
    place = np.minimum((probabilities * 10).astype(int), 9)
    groups = pd.DataFrame({"truth": truth, "predicted": probabilities}).groupby(place)
    table = groups.agg(predicted=("predicted", "mean"), hits=("truth", "sum"), count=("truth", "size"))
    table[["observed", "low", "high"]] = [
        astuple(wilson(*row)) for row in table[["hits", "count"]].astype(int).to_numpy()
    ]
    error = (table["count"] * (table["predicted"] - table["observed"]).abs()).sum() / len(truth)
    table = table[["predicted", "observed", "low", "high", "count"]].reset_index(drop=True)
    return Calibration(float(brier_score_loss(truth, probabilities)), float(error), table)
