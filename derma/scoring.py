"""Score predictions the way part 3 of the ISIC 2017 challenge did, and say how sure the scores are.

Category 1 is melanoma against the rest, category 2 seborrheic keratosis against the rest, each by the area under the
ROC curve (AUC); category 3 is their mean (https://challenge.isic-archive.com/landing/2017/44/). No torch in here: a
score should come in a second. All intervals are 95 % confidence intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score, roc_curve

Z = 1.959963984540054  # the standard normal's 97.5 % quantile
RESAMPLES = 2000
CHALLENGE_SENSITIVITIES = (0.82, 0.89, 0.95)  # at which the challenge reported melanoma's specificity

# The 23 entries' scores in each category, each list best first (https://arxiv.org/abs/1710.05006).
LEADERBOARD = {
    1: (
        0.874, 0.870, 0.868, 0.856, 0.836, 0.830, 0.805, 0.804, 0.791, 0.789, 0.786, 0.783, 0.782, 0.765, 0.759, 0.757,
        0.715, 0.684, 0.636, 0.623, 0.500, 0.495, 0.475,
    ),
    2: (
        0.965, 0.953, 0.943, 0.942, 0.935, 0.921, 0.911, 0.911, 0.908, 0.886, 0.885, 0.881, 0.875, 0.867, 0.855, 0.840,
        0.827, 0.817, 0.817, 0.774, 0.687, 0.498, 0.456,
    ),
    3: (
        0.911, 0.910, 0.908, 0.896, 0.886, 0.886, 0.851, 0.850, 0.836, 0.829, 0.825, 0.823, 0.823, 0.823, 0.816, 0.811,
        0.804, 0.750, 0.705, 0.658, 0.655, 0.497, 0.465,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % confidence interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison:
    """First minus second, with its interval and two-sided p value."""

    difference: Estimate
    p: float


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold does to one binary question.

    Attributes:
        threshold: predicted positive at or above it.
        matrix: (2, 2) counts; rows are the truth (negative, positive), columns the prediction.
        sensitivity: share of the positives that are found (recall).
        specificity: share of the negatives that are left alone.
        ppv, npv: share of the positive, negative predictions that are right.
        balanced_accuracy: mean of sensitivity and specificity.
    """

    threshold: float
    matrix: np.ndarray
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    balanced_accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be taken at their word.

    Attributes:
        brier: mean squared difference to the truth, 0 to 1 (Brier, 1950).
        error: expected calibration error, 0 to 1: mean distance between predicted and observed share, over equal bins
            of probability, weighted by their sizes (Naeini et al., 2015, https://doi.org/10.1609/aaai.v29i1.9602).
        bins: a row for each bin with pictures in it: ``predicted`` mean, ``observed`` share with its interval ``low``
            and ``high``, and ``count``.
    """

    brier: float
    error: float
    bins: pd.DataFrame


def score(joined: pd.DataFrame) -> tuple[float, float, float]:
    """Return the scores of categories 1, 2 and 3, each in [0, 1].

    Args:
        joined: as ``derma.tables.join`` returns it, which sees to it that both classes are there.
    """
    first = float(roc_auc_score(joined["true_1"], joined["task_1"]))
    second = float(roc_auc_score(joined["true_2"], joined["task_2"]))
    return first, second, (first + second) / 2


def mean_auc(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Return category 3's score straight from arrays, as the training loop needs it after every epoch.

    Args:
        targets: (N,) class numbers, 0 melanoma, 1 nevus, 2 seborrheic keratosis.
        probabilities: (N, 3) class probabilities.

    Returns:
        A number in [0, 1], or NaN (with scikit-learn's warning) where melanoma or keratosis is missing.
    """
    return float(np.mean([roc_auc_score(targets == k, probabilities[:, k]) for k in (0, 2)]))


def rank_in_challenge(category: int, area: float) -> int:
    """Return the place that a score would have had among the 23 entries: 1 is best, 24 is behind them all."""
    return 1 + sum(entry > round(area, 3) for entry in LEADERBOARD[category])


# --- areas, by DeLong's method ---------------------------------------------------------------------------------------


def placements(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return DeLong's structural components of the AUC, in O(n log n).

    Args:
        truth: (N,) 0 or 1, both present.
        scores: (N,) numbers, higher for positives.

    Returns:
        For each positive the share of negatives below it, and for each negative the share of positives above it, ties
        counting half; in the order of ``scores``. The mean of either is the AUC. Source: DeLong, DeLong and
        Clarke-Pearson, 1988, https://doi.org/10.2307/2531595.
    """
    truth, scores = np.asarray(truth).astype(bool), np.asarray(scores, dtype=float)
    positives, negatives = scores[truth], scores[~truth]

    def share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
        others = np.sort(others)
        below, up_to = np.searchsorted(others, values, "left"), np.searchsorted(others, values, "right")
        return (below + up_to) / (2 * len(others))

    return share_below(positives, negatives), 1 - share_below(negatives, positives)


def _covariance(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """Covariance of two AUCs on the same pictures, from their structural components."""
    # A single positive (or negative) leaves its part of the variance unknown: NaN, and so the interval.
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(
            sum(
                ((a - a.mean()) * (b - b.mean())).sum() / np.float64(len(a) - 1) / len(a)
                for a, b in zip(first, second, strict=True)
            )
        )


def delong(truth: np.ndarray, scores: np.ndarray) -> Estimate:
    """Return the AUC with DeLong's interval, cut to [0, 1]; a single positive or negative leaves all of [0, 1].

    Args:
        truth: (N,) 0 or 1, both present.
        scores: (N,) numbers, higher for positives.
    """
    parts = placements(truth, scores)
    area, half = float(roc_auc_score(truth, scores)), Z * math.sqrt(_covariance(parts, parts))
    return Estimate(area, max(0.0, area - half), min(1.0, area + half))


def delong_test(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compare the AUCs of two predictions of the same pictures by DeLong's paired test.

    Args:
        truth: (N,) 0 or 1, both present.
        first, second: (N,) numbers, higher for positives.
    """
    a, b = placements(truth, first), placements(truth, second)
    difference = float(a[0].mean() - b[0].mean())
    variance = _covariance(a, a) + _covariance(b, b) - 2 * _covariance(a, b)
    # Rounding can leave a variance of minus nothing where the two rank alike.
    return _normal_test(difference, math.sqrt(max(variance, 0.0)))


def _normal_test(difference: float, error: float) -> Comparison:
    """A difference with its standard error, taken to be normal."""
    if error < 1e-12:  # nothing varies, so there is no test: both the same, or one perfect and the other its reverse
        p = 1.0 if abs(difference) < 1e-12 else math.nan
    else:
        p = math.erfc(abs(difference) / error / math.sqrt(2))
    return Comparison(Estimate(difference, difference - Z * error, difference + Z * error), p)


def stratified_error(joined: pd.DataFrame, weights: dict[str, float]) -> float:
    """Return the standard error of a weighted sum of AUCs whose pictures vary within each of the three classes.

    Each picture's influence on the sum is that on each AUC, from its structural component; the variances within the
    classes add up. It is what the stratified bootstrap estimates, in O(n log n).

    Args:
        joined: columns of predictions, and ``true_1`` and ``true_2``.
        weights: by column of predictions; a name that ends in 1 is of category 1, and so on.
    """
    influence = np.zeros(len(joined))
    for column, weight in weights.items():
        truth = joined[f"true_{column[-1]}"].to_numpy() == 1
        above, below = placements(truth, joined[column].to_numpy())
        influence[truth] += weight * above / len(above)
        influence[~truth] += weight * below / len(below)
    classes = joined["true_1"] + 2 * joined["true_2"]
    groups = [influence[(classes == each).to_numpy()] for each in classes.unique()]
    return math.sqrt(sum(len(group) * group.var(ddof=1) for group in groups if len(group) > 1))


# --- areas, by resampling --------------------------------------------------------------------------------------------

LARGE = 10_000  # pictures from which on the bootstrap gives way to the normal interval that it comes to


def _dense_ranks(scores: np.ndarray, most: int | None = None) -> np.ndarray:
    """Ranks 0, 1, ... of the distinct scores; neighbours share one where there are more than ``most`` of them."""
    ranks = np.unique(scores, return_inverse=True)[1]
    counts = np.bincount(ranks)
    if most is None or len(counts) <= most:
        return ranks
    middle = (np.cumsum(counts) - counts / 2) / len(scores)
    return np.unique((middle * most).astype(int)[ranks], return_inverse=True)[1]


def _areas(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """AUC of every row of counts (resamples, distinct scores in rising order), ties counting half."""
    below = negative.cumsum(axis=1) - negative / 2
    return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def bootstrap_areas(
    joined: pd.DataFrame, columns: Sequence[str] = ("task_1", "task_2"), resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Resample the pictures within each of the three classes and return every resample's AUCs.

    Args:
        joined: columns of predictions, and ``true_1`` and ``true_2``.
        columns: predictions to measure; a name that ends in 1 is of category 1, and so on. All come from the same
            resamples, so differences between columns are paired.
        resamples: how many.
        seed: of the resampling.

    Returns:
        (resamples, columns) areas in [0, 1].
    """
    rng = np.random.default_rng(seed)
    classes = (joined["true_1"] + 2 * joined["true_2"]).to_numpy().astype(int)
    ranks = [_dense_ranks(joined[column].to_numpy()) for column in columns]
    orders = [np.argsort(each, kind="stable") for each in ranks]
    firsts = [np.flatnonzero(np.diff(each[order], prepend=-1)) for each, order in zip(ranks, orders, strict=True)]
    areas = np.empty((resamples, len(columns)))
    step = max(1, 4_000_000 // len(classes))  # bounds the memory of a chunk
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = np.empty((rows, len(classes)))
        for group in np.unique(classes):
            members = np.flatnonzero(classes == group)
            drawn[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=rows)
        for number, column in enumerate(columns):
            positive = np.where(classes == int(column[-1]), drawn, 0)
            tallies = [
                np.add.reduceat(part[:, orders[number]], firsts[number], axis=1)
                for part in (positive, drawn - positive)
            ]
            areas[start : start + rows, number] = _areas(*tallies)
    return areas


def percentile_interval(value: float, resampled: np.ndarray) -> Estimate:
    """Return a number with the interval that holds the middle 95 % of its resamples (Efron, 1979)."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def bootstrap_test(difference: float, resampled: np.ndarray) -> Comparison:
    """Return a difference with its interval and the two-sided p value from paired resamples of it."""
    share = min((resampled <= 0).mean(), (resampled >= 0).mean())
    # Never 0: with B resamples nothing below 2 / (B + 1) can be told apart from it.
    p = min(1.0, 2 * (share * len(resampled) + 1) / (len(resampled) + 1))
    return Comparison(percentile_interval(difference, resampled), float(p))


def _resampled_rates(truth: np.ndarray, scores: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, (resamples, thresholds + 1), of resampled negatives and positives.

    Thresholds fall from above the highest score to the lowest; beyond 1,000 distinct scores neighbours are grouped.
    """
    rng = np.random.default_rng(seed)
    truth, ranks = np.asarray(truth).astype(bool), _dense_ranks(np.asarray(scores, dtype=float), most=1000)
    rates = []
    for group in (~truth, truth):
        counts = np.bincount(ranks[group], minlength=ranks.max() + 1)[::-1]
        drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples).cumsum(axis=1)
        rates.append(np.hstack([np.zeros((resamples, 1)), drawn / counts.sum()]))
    return rates[0], rates[1]


def roc_band(
    truth: np.ndarray, scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a pointwise 95 % band of the ROC curve by the bootstrap, positives and negatives resampled apart.

    Args:
        truth: (N,) 0 or 1, both present.
        scores: (N,) numbers, higher for positives.
        resamples, seed: of the bootstrap.

    Returns:
        Three arrays of 201: false positive rates from 0 to 1, and the sensitivity's low and high at each.
    """
    grid = np.linspace(0, 1, 201)
    rates = _resampled_rates(truth, scores, resamples, seed)
    curves = [np.interp(grid, false, true) for false, true in zip(*rates, strict=True)]
    low, high = np.quantile(curves, (0.025, 0.975), axis=0)
    return grid, low, high


# --- everything about one set of predictions -------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """All that is said of one set of predictions.

    Attributes:
        areas: categories 1 and 2 with DeLong's interval, category 3 with the bootstrap's, or beyond 10,000 pictures
            with the normal one of :func:`stratified_error`.
        methods: the names of the three.
        bootstrapped: the three by the bootstrap alone, as a cross-check; None beyond 10,000 pictures.
        ranks: their places among the 23 entries.
        points: melanoma at the given threshold, and at the thresholds that reach the challenge's sensitivities; see
            :func:`points_at_sensitivities` for what the intervals of those mean.
        average_precision: of melanoma and of seborrheic keratosis.
        calibration: of melanoma and of seborrheic keratosis.
    """

    areas: dict[int, Estimate]
    methods: dict[int, str]
    bootstrapped: dict[int, Estimate] | None
    ranks: dict[int, int]
    points: list[OperatingPoint]
    average_precision: dict[int, float]
    calibration: dict[int, Calibration]


def methods(joined: pd.DataFrame) -> dict[int, str]:
    """Return how each category's interval and test are made."""
    return {1: "DeLong", 2: "DeLong", 3: "bootstrap" if len(joined) <= LARGE else "normal"}


def report(joined: pd.DataFrame, threshold: float = 0.5, resamples: int = RESAMPLES, seed: int = 0) -> Report:
    """Measure predictions.

    Args:
        joined: as ``derma.tables.join`` returns it.
        threshold: of the first operating point.
        resamples, seed: of the bootstrap.
    """
    scores = dict(enumerate(score(joined), start=1))
    areas = {k: delong(joined[f"true_{k}"], joined[f"task_{k}"]) for k in (1, 2)}
    if len(joined) > LARGE:
        bootstrapped = None
        half = Z * stratified_error(joined, {"task_1": 0.5, "task_2": 0.5})
        areas[3] = Estimate(scores[3], max(0.0, scores[3] - half), min(1.0, scores[3] + half))
    else:
        resampled = bootstrap_areas(joined, resamples=resamples, seed=seed)
        resampled = np.column_stack([resampled, resampled.mean(axis=1)])
        bootstrapped = {k: percentile_interval(scores[k], resampled[:, k - 1]) for k in scores}
        areas[3] = bootstrapped[3]
    truth, melanoma = joined["true_1"].to_numpy(), joined["task_1"].to_numpy()
    return Report(
        areas=areas,
        methods=methods(joined),
        bootstrapped=bootstrapped,
        ranks={k: rank_in_challenge(k, area) for k, area in scores.items()},
        points=[
            operating_point(truth, melanoma, threshold),
            *points_at_sensitivities(truth, melanoma, CHALLENGE_SENSITIVITIES, resamples, seed),
        ],
        average_precision={k: float(average_precision_score(joined[f"true_{k}"], joined[f"task_{k}"])) for k in (1, 2)},
        calibration={k: calibration(joined[f"true_{k}"], joined[f"task_{k}"]) for k in (1, 2)},
    )


def compare(
    first: pd.DataFrame, second: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0
) -> dict[int, Comparison]:
    """Compare two predictions of the same pictures: categories 1 and 2 by DeLong's test, 3 as :func:`methods` says.

    Args:
        first, second: as ``derma.tables.join`` returns them, with the same truth.
        resamples, seed: of the bootstrap.
    """
    both = first.join(second[["task_1", "task_2"]].add_prefix("other_"))
    result = {k: delong_test(both[f"true_{k}"], both[f"task_{k}"], both[f"other_task_{k}"]) for k in (1, 2)}
    difference = score(first)[2] - score(second)[2]
    weights = {"task_1": 0.5, "task_2": 0.5, "other_task_1": -0.5, "other_task_2": -0.5}
    if len(both) > LARGE:
        result[3] = _normal_test(difference, stratified_error(both, weights))
    else:
        resampled = bootstrap_areas(both, list(weights), resamples, seed)
        result[3] = bootstrap_test(difference, resampled @ list(weights.values()))
    return result


def ensemble(tables: list[pd.DataFrame], by_rank: bool = False) -> pd.DataFrame:
    """Average predictions of the same pictures.

    Args:
        tables: columns ``task_1`` and ``task_2`` in [0, 1], with the same Ids in any order.
        by_rank: average ranks (scaled to (0, 1), ties sharing their mean rank) and not probabilities: for predictions
            whose scales differ.
    """
    first = tables[0].index
    aligned = [table.loc[first, ["task_1", "task_2"]] for table in tables]
    if by_rank:
        aligned = [(table.rank() - 0.5) / len(table) for table in aligned]
    return sum(aligned) / len(aligned)


def averaging_gain(
    targets: np.ndarray, probabilities: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare the average of several models' probabilities with what these models reach alone, on average.

    Args:
        targets: (N,) classes, 0 to 2 in the order of :data:`derma.dataset.CLASSES`.
        probabilities: (models, N, 3), in [0, 1].
        resamples: of the pictures, within each class.
        seed: of the resampling.

    Returns:
        The difference of mean AUCs with its interval, which says what other pictures might give, not other models;
        NaN (with scikit-learn's warning) where melanoma or keratosis is missing.
    """
    stacked = np.concatenate([probabilities, np.mean(probabilities, axis=0, keepdims=True)])
    means = np.array([mean_auc(targets, each) for each in stacked])
    found = float(means[-1] - means[:-1].mean())
    if np.isnan(found):
        return Comparison(Estimate(found, found, found), found)
    columns = {
        f"{model}/task_{task}": each[:, column]
        for model, each in enumerate(stacked)
        for task, column in ((1, 0), (2, 2))
    }
    truth = {"true_1": (targets == 0).astype(float), "true_2": (targets == 2).astype(float)}
    drawn = bootstrap_areas(pd.DataFrame(columns | truth), list(columns), resamples, seed)
    drawn = drawn.reshape(resamples, len(stacked), 2).mean(2)
    return bootstrap_test(found, drawn[:, -1] - drawn[:, :-1].mean(1))


# --- thresholds ------------------------------------------------------------------------------------------------------


def wilson(successes: int, trials: int) -> Estimate:
    """Return a share with Wilson's interval (1927, https://doi.org/10.1080/01621459.1927.10502953)."""
    if trials == 0:
        return Estimate(math.nan, math.nan, math.nan)
    share, z2 = successes / trials, Z * Z / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(share * (1 - share) * z2 + z2 * z2 / 4) / (1 + z2)
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


def operating_point(truth: np.ndarray, probabilities: np.ndarray, threshold: float) -> OperatingPoint:
    """Apply a threshold to probabilities.

    Args:
        truth: (N,) 0 or 1, both present.
        probabilities: (N,) in [0, 1].
        threshold: in [0, 1].
    """
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
    """Return the highest threshold that finds at least a share ``goal`` of the positives.

    Args:
        truth: (N,) 0 or 1, both present.
        probabilities: (N,) in [0, 1].
        goal: in (0, 1].
    """
    positives = np.sort(np.asarray(probabilities)[np.asarray(truth).astype(bool)])[::-1]
    needed = math.ceil(goal * len(positives) - 1e-9)  # 0.95 * 20 is a hair above 19 in binary
    return float(positives[max(needed, 1) - 1])


def points_at_sensitivities(
    truth: np.ndarray,
    probabilities: np.ndarray,
    goals: Sequence[float],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[OperatingPoint]:
    """Return the operating points at :func:`threshold_for_sensitivity`, chosen on the very pictures they are judged on.

    The sensitivity's interval is Wilson's, for the threshold as printed. Those of specificity, PPV and NPV answer what
    they are where the sensitivity is the goal: they are the bootstrap's, with the threshold chosen anew in every
    resample, since Wilson's would take it for given and be far too narrow.

    Args:
        truth: (N,) 0 or 1, both present.
        probabilities: (N,) in [0, 1].
        goals: least sensitivities, in (0, 1].
        resamples, seed: of the bootstrap.
    """
    false, true = _resampled_rates(truth, probabilities, resamples, seed)
    positives = int(np.asarray(truth).sum())
    negatives = len(truth) - positives
    points = []
    for goal in goals:
        point = operating_point(truth, probabilities, threshold_for_sensitivity(truth, probabilities, goal))
        false_rate = np.array([np.interp(goal, each_true, each_false) for each_true, each_false in zip(true, false)])
        hits, alarms = goal * positives, false_rate * negatives
        resampled = {
            "specificity": 1 - false_rate,
            "ppv": hits / (hits + alarms),
            "npv": (negatives - alarms) / np.maximum(negatives - alarms + positives - hits, 1e-9),
        }
        intervals = {name: percentile_interval(getattr(point, name).value, each) for name, each in resampled.items()}
        points.append(replace(point, **intervals))
    return points


def threshold_for_balance(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold with the best balanced accuracy (Youden, 1950, Cancer 3:32-35).

    Args:
        truth: (N,) 0 or 1, of pictures that are not those the threshold will be judged on.
        probabilities: (N,) in [0, 1].
    """
    false_positive_rate, true_positive_rate, thresholds = roc_curve(truth, probabilities)
    return float(min(thresholds[np.argmax(true_positive_rate - false_positive_rate)], 1.0))


@dataclass(frozen=True)
class Calibrator:
    """Makes probabilities of classes such that they can be taken at their word; see :func:`fit_calibrator`.

    Attributes:
        temperature: the logarithms of the probabilities are divided by it; above 1 where they are too sure.
        offsets: one for each class, added to that; their sum is 0.
    """

    temperature: float
    offsets: list[float]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities (N, K) of the given ones, (N, K) in [0, 1]."""
        return softmax(np.log(np.clip(probabilities, 1e-12, 1)) / self.temperature + np.array(self.offsets), axis=1)


def fit_calibrator(targets: np.ndarray, probabilities: np.ndarray) -> Calibrator:
    """Fit a temperature and the classes' offsets by maximum likelihood.

    Temperature scaling with a bias (Alexandari et al., 2020, https://arxiv.org/abs/1901.06852): the temperature mends
    confidence (Guo et al., 2017, https://arxiv.org/abs/1706.04599), the offsets what weighted classes have shifted.

    Args:
        targets: (N,) class indices, of pictures that the network was not trained on; every class is present.
        probabilities: (N, K) of the same.
    """
    targets = np.asarray(targets)

    def fitted(values: np.ndarray) -> Calibrator:
        offsets = np.append(values[1:], 0.0)
        return Calibrator(float(np.exp(values[0])), (offsets - offsets.mean()).tolist())

    def loss(values: np.ndarray) -> float:
        return log_loss(targets, fitted(values)(probabilities), labels=range(probabilities.shape[1]))

    # A temperature within a factor of 20 of 1: perfect predictions would drive it to 0.
    bounds = [(-3.0, 3.0)] + [(-10.0, 10.0)] * (probabilities.shape[1] - 1)
    return fitted(minimize(loss, np.zeros(probabilities.shape[1]), bounds=bounds, method="L-BFGS-B").x)


def calibration(truth: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> Calibration:
    """Compare predicted probabilities with observed shares.

    Args:
        truth: (N,) 0 or 1.
        probabilities: (N,) in [0, 1].
        bins: of equal width over [0, 1]; empty ones are left out.
    """
    truth, probabilities = np.asarray(truth, dtype=float), np.asarray(probabilities, dtype=float)
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    groups = pd.DataFrame({"truth": truth, "predicted": probabilities}).groupby(place)
    table = groups.agg(predicted=("predicted", "mean"), hits=("truth", "sum"), count=("truth", "size"))
    intervals = [wilson(int(hits), int(count)) for hits, count in zip(table["hits"], table["count"], strict=True)]
    for name, attribute in (("observed", "value"), ("low", "low"), ("high", "high")):
        table[name] = [getattr(interval, attribute) for interval in intervals]
    error = (table["count"] * (table["predicted"] - table["observed"]).abs()).sum() / len(truth)
    table = table[["predicted", "observed", "low", "high", "count"]].reset_index(drop=True)
    return Calibration(float(brier_score_loss(truth, probabilities)), float(error), table)
