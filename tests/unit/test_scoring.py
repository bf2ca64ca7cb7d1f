import math
from dataclasses import astuple, is_dataclass

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from MLstatkit import Delong_test
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from derma import scoring, tables
from derma.scoring import delong, delong_test, operating_point, score


def predictions(count: int, seed: int, decimals: int = 8) -> pd.DataFrame:
    """Informative predictions, with many ties at one decimal and none at eight."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.arange(count) % 5)  # a fifth melanoma, a fifth keratosis
    truth = {"true_1": (classes == 0) * 1.0, "true_2": (classes == 1) * 1.0}
    return pd.DataFrame({f"task_{k[-1]}": rng.beta(2 + 2 * truth[k], 4).round(decimals) for k in truth} | truth)


@pytest.mark.parametrize("decimals", [1, 8])
def test_areas_intervals_and_tests_are_those_of_other_libraries(decimals):
    first, second = predictions(157, 3, decimals), predictions(157, 103, decimals)
    areas = [roc_auc_score(first[f"true_{k}"], first[f"task_{k}"]) for k in (1, 2)]
    assert score(first) == (*areas, sum(areas) / 2)
    targets = np.select([first["true_1"] == 1, first["true_2"] == 1], [0, 2], 1)
    assert scoring.mean_auc(targets, scoring.three_classes(first)) == sum(areas) / 2
    truth, a = first["true_1"].to_numpy(), first["task_1"].to_numpy()
    b = (a + second["task_1"].to_numpy()).round(decimals)
    result = delong_test(truth, a, b)
    z, p, interval, _, area_a, area_b, *_ = Delong_test(truth, a, b)
    assert (result.difference.value, result.p) == pytest.approx((area_a - area_b, p), abs=1e-9)
    assert result.difference.high / result.difference.value == pytest.approx(1 + scoring.Z / abs(z), rel=1e-6)
    assert astuple(delong(truth, a))[1:] == pytest.approx(interval, abs=1e-9)
    assert delong(truth, truth) == scoring.Estimate(1, 1, 1) and math.isnan(delong_test(truth, truth, 1 - truth).p)
    assert delong(np.array([1, 0, 0]), np.array([0.4, 0.5, 0.3])) == scoring.Estimate(0.5, 0, 1)  # unknown variance


def test_compare():
    first = predictions(400, 1)
    worse = first.assign(task_1=np.random.default_rng(0).random(400))
    result = scoring.compare(first, worse.sample(frac=1, random_state=0))
    for k in (1, 2, 3):
        assert result[k].difference.value == pytest.approx(score(first)[k - 1] - score(worse)[k - 1])
    assert result[1].p < 1e-4 and result[2].p == 1 and result[3].p < 0.01 and result[3].difference.low > 0
    assert scoring.bootstrap_test(0.1, np.full(999, 0.1)).p == pytest.approx(2 / 1000)  # never 0
    assert [scoring.rank_in_challenge(1, area) for area in (0.9, 0.8736, 0.8734, 0.1)] == [1, 1, 2, 24]  # three digits


def test_balanced_accuracy_has_an_interval():
    rng = np.random.default_rng(0)
    targets, predicted = rng.integers(0, 3, (2, 300))
    found = scoring.balanced_accuracy_interval(targets, predicted)
    assert found.value == pytest.approx(balanced_accuracy_score(targets, predicted))
    assert found.low < found.value < found.high < found.low + 0.12


def test_thresholds_are_the_best_of_all():
    point = operating_point(np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.5, 0.3, 0.5, 0.2]), 0.5)
    assert point.matrix.tolist() == [[2, 1], [1, 1]] and point.balanced_accuracy == pytest.approx(7 / 12)
    assert (point.specificity.value, point.ppv.value, point.npv.value) == (2 / 3, 1 / 2, 2 / 3)
    rng = np.random.default_rng(3)
    truth, probabilities = rng.integers(0, 2, 200), rng.random(200).round(2)
    for goal in (0.01, 0.82, 0.95, 1.0):
        threshold = scoring.threshold_for_sensitivity(truth, probabilities, goal)
        assert operating_point(truth, probabilities, threshold).sensitivity.value >= goal
        assert operating_point(truth, probabilities, threshold + 0.005).sensitivity.value < goal
    assert scoring.threshold_for_sensitivity(np.ones(20), np.arange(20) / 20, 0.95) == 1 / 20  # 19 of 20 are enough


@pytest.mark.parametrize(("count", "decimals"), [(600, 8), (600, 1), (1500, 8)])
def test_report_holds_all_measures(count, decimals):
    joined = predictions(count, 4, decimals)
    result = scoring.report(joined, threshold=0.4)
    assert [area.value for area in result.areas.values()] == pytest.approx(score(joined))
    for k in (1, 2):
        a, b = result.areas[k], result.bootstrapped[k]
        assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=0.006)  # DeLong's method and the bootstrap agree
    for point, goal in zip(result.points[1:], scoring.CHALLENGE_SENSITIVITIES, strict=True):
        assert point.sensitivity.value == goal <= point.matrix[1, 1] / point.matrix[1].sum()
        given = operating_point(joined["true_1"], joined["task_1"], point.threshold).specificity
        assert point.specificity.high - point.specificity.low > 1.3 * (given.high - given.low)  # chosen on these images
    _, low, high = scoring.roc_band(joined["true_1"], joined["task_1"])
    assert np.all(low <= high) and ((low + high) / 2).mean() == pytest.approx(score(joined)[0], abs=0.03)
    bins, error = result.calibration[1].bins, result.calibration[1].error
    curve = calibration_curve(joined["true_1"], joined["task_1"] + 1e-12, n_bins=10)
    assert np.allclose(bins[["observed", "predicted"]], np.transpose(curve))
    assert error == pytest.approx(np.average(abs(curve[0] - curve[1]), weights=bins["count"]))


def estimates(value):
    """All estimates within nested values."""
    if isinstance(value, scoring.Estimate):
        return [value]
    inner = vars(value) if is_dataclass(value) else value
    each = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ()
    return [found for part in each for found in estimates(part)]


KINDS = {
    "random": lambda truth, noise: noise,
    "tied": lambda truth, noise: (truth * 0.3 + noise * 0.7).round(1),
    "constant": lambda truth, noise: noise * 0,
    "hard labels": lambda truth, noise: abs(truth - (noise < 0.2)),
    "perfect": lambda truth, noise: truth * 1.0,
    "nearly perfect": lambda truth, noise: truth * 0.6 + noise * 0.4,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("counts", "resamples"), [((2, 1, 4), 5), ((20, 7, 40), 1), ((117, 90, 393), 40)])
def test_no_interval_excludes_its_own_estimate(kind, counts, resamples, monkeypatch):
    """A rate and its interval are of the same thing; what is undefined is a dash."""
    monkeypatch.setattr(scoring, "RESAMPLES", resamples)
    rng = np.random.default_rng(counts)
    targets, noise = rng.permutation(np.repeat([0, 1, 2], counts)), rng.random((2, sum(counts)))
    joined = pd.DataFrame({f"true_{k}": (targets == k - 1) * 1 for k in (1, 2)})
    joined = joined.assign(**{f"task_{k}": KINDS[kind](joined[f"true_{k}"], noise[0]) for k in (1, 2)})
    other = joined.assign(task_1=noise[1])
    accuracy = scoring.balanced_accuracy_interval(targets, rng.permutation(targets))
    report, compared = scoring.report(joined), scoring.compare(joined, other)
    chosen = scoring.out_of_fold(other, joined)
    found = estimates([report, chosen, accuracy, *compared.values()])
    assert len(found) == 3 + 3 + 4 * 4 + 5 + 1 + 3
    assert all(each.low <= each.value <= each.high or str(each) == "-" for each in found), found
    for point in report.points[1:]:  # a mean of neighbouring points of the ROC curve, so always defined
        assert 0 <= point.specificity.value <= 1 and 0 < point.ppv.value <= 1 and 0 <= point.npv.value <= 1
    grid, low, high = scoring.roc_band(joined["true_1"], joined["task_1"])
    curve = np.interp(grid, *roc_curve(joined["true_1"], joined["task_1"])[:2])
    assert (low <= curve).all() and (curve <= high).all()


def test_what_the_challenges_scorer_prints():
    """Counted pair by pair, on the published predictions."""
    truth = tables.read_table(ROOT / "ground_truth.csv", truth=True)
    joined = tables.join(tables.read_table(ROOT / "docs" / "official" / "results.csv"), truth)
    report = scoring.report(joined)
    for k, published in ((1, 0.6227), (2, 0.8898)):
        positives, negatives = (joined.loc[joined[f"true_{k}"] == each, f"task_{k}"].to_numpy() for each in (1, 0))
        heights = ((positives > negatives[:, None]) + (positives == negatives[:, None]) / 2).mean(axis=1)
        precisions = [(positives >= each).sum() / (joined[f"task_{k}"] >= each).sum() for each in positives]
        assert report.areas[k].value == pytest.approx(heights.mean(), abs=1e-14)
        assert report.average_precision[k] == pytest.approx(np.mean(precisions), abs=1e-14)
        # the curve's steps to the right of a sensitivity of 0.8: no tie is near it
        above = (heights * (heights >= 0.8)).mean()
        assert report.areas_above_80[k] == pytest.approx(above, abs=1e-14) == pytest.approx(published, abs=5e-5)
    hard = scoring.area_above_sensitivity([1, 1, 0, 0], [1, 0, 1, 0])  # a diagonal, from (0.8, 0.8) to (1, 1)
    assert hard == pytest.approx(0.18) and scoring.area_above_sensitivity([1, 0], [1, 0]) == 1


def test_what_is_chosen_out_of_fold_undoes_temperature_and_weights(monkeypatch):
    monkeypatch.setattr(scoring, "RESAMPLES", 20)
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 1.5, (12_000, 3))
    targets = (softmax(logits, axis=1).cumsum(1) < rng.uniform(size=(12_000, 1))).sum(1)
    given = softmax(2.5 * logits + [1.0, -1.5, 0.5], axis=1)  # overconfident, and in favour of some classes
    values = np.stack([given[:, 0], given[:, 2], targets == 0, targets == 2], axis=1)
    joined = pd.DataFrame(values, columns=["task_1", "task_2", "true_1", "true_2"])
    found = scoring.out_of_fold(joined[:8000], joined[8000:])
    assert found.calibrator.temperature == pytest.approx(2.5, rel=0.05)
    assert found.calibrator.offsets == pytest.approx([-0.4, 0.6, -0.2], abs=0.06)
    assert all(found.after[k] < 0.025 < 0.05 < found.before[k] for k in (1, 2))
    assert found.images == 8000 and found.point.sensitivity.low < 0.89 < found.point.sensitivity.high
    assert np.isfinite(scoring.fit_calibrator([0, 1, 2], np.eye(3))(np.eye(3))).all()  # perfect predictions
