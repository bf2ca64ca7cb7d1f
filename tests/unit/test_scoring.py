import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MLstatkit import Delong_test
from sklearn.calibration import calibration_curve
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import roc_auc_score

from derma import scoring
from derma.scoring import (
    bootstrap_areas,
    bootstrap_test,
    calibration,
    compare,
    delong,
    delong_test,
    ensemble,
    fit_calibrator,
    mean_auc,
    operating_point,
    placements,
    points_at_sensitivities,
    rank_in_challenge,
    report,
    roc_band,
    score,
    threshold_for_balance,
    threshold_for_sensitivity,
    wilson,
)


def pictures(count: int, seed: int, decimals: int = 8) -> pd.DataFrame:
    """Predictions that know something, with many ties at one decimal and none at eight."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.arange(count) % 5)  # a fifth melanoma, a fifth keratosis
    truth = {"true_1": (classes == 0) * 1.0, "true_2": (classes == 1) * 1.0}
    signal = {f"task_{k}": rng.beta(2 + 2 * truth[f"true_{k}"], 4).round(decimals) for k in (1, 2)}
    return pd.DataFrame({**signal, **truth})


def direct(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's components as he wrote them: every positive against every negative, O(n m)."""
    positives, negatives = scores[truth == 1], scores[truth == 0]
    kernel = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    return kernel.mean(axis=1), kernel.mean(axis=0)


def direct_covariance(a, b):
    return sum(np.cov(x, y, ddof=1)[0, 1] / len(x) for x, y in zip(a, b, strict=True))


# --- against independent implementations -----------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [1, 8])
@pytest.mark.parametrize("seed", range(5))
def test_areas_and_delong_agree_with_others(decimals, seed):
    first, second = pictures(157, seed, decimals), pictures(157, seed + 100, decimals)
    for k in (1, 2):
        truth = first[f"true_{k}"].to_numpy()
        a, b = first[f"task_{k}"].to_numpy(), (first[f"task_{k}"] + second[f"task_{k}"]).to_numpy().round(decimals)
        parts = direct(truth, a), direct(truth, b)
        for ours, theirs in zip((*placements(truth, a), *placements(truth, b)), (*parts[0], *parts[1]), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-12)
        assert delong(truth, a).value == pytest.approx(roc_auc_score(truth, a), abs=1e-12)

        half = scoring.Z * math.sqrt(direct_covariance(parts[0], parts[0]))
        assert delong(truth, a).high == pytest.approx(min(1, delong(truth, a).value + half), abs=1e-12)
        variance = sum(direct_covariance(x, y) for x, y in zip(parts, parts, strict=True))
        variance -= 2 * direct_covariance(*parts)
        result = delong_test(truth, a, b)
        assert result.difference.high - result.difference.value == pytest.approx(
            scoring.Z * math.sqrt(variance), abs=1e-9
        )

        z, p, interval, _, area_a, area_b, *_ = Delong_test(truth, a, b)
        assert result.difference.value == pytest.approx(area_a - area_b, abs=1e-12)
        assert result.p == pytest.approx(p, abs=1e-9)
        assert math.copysign(1, z) == math.copysign(1, area_b - area_a)
        assert (delong(truth, a).low, delong(truth, a).high) == pytest.approx(interval, abs=1e-9)


def test_score_is_scikit_learns_exactly():
    for decimals in (1, 8):
        joined = pictures(301, 3, decimals)
        areas = [roc_auc_score(joined[f"true_{k}"], joined[f"task_{k}"]) for k in (1, 2)]
        assert score(joined) == (*areas, sum(areas) / 2)
        targets = np.select([joined["true_1"] == 1, joined["true_2"] == 1], [0, 2], 1)
        probabilities = np.stack([joined["task_1"], np.zeros(301), joined["task_2"]], axis=1)
        assert mean_auc(targets, probabilities) == sum(areas) / 2


@pytest.mark.parametrize("decimals", [1, 8])
def test_bootstrap_agrees_with_drawing_pictures_one_by_one(decimals):
    joined = pictures(120, 11, decimals)
    rng = np.random.default_rng(0)
    classes = (joined["true_1"] + 2 * joined["true_2"]).to_numpy()
    groups = [np.flatnonzero(classes == k) for k in (0, 1, 2)]
    naive = []
    for _ in range(1500):
        drawn = joined.iloc[np.concatenate([rng.choice(group, len(group)) for group in groups])]
        naive.append(score(drawn)[:2])
    naive, ours = np.array(naive), bootstrap_areas(joined, resamples=4000, seed=1)
    # Two bootstraps differ by chance alone: a quantile of 1,500 resamples has a standard error of about 0.07 sd.
    for quantile in (0.025, 0.5, 0.975):
        ours_at, naive_at = (np.quantile(areas.mean(axis=1), quantile) for areas in (ours, naive))
        assert abs(ours_at - naive_at) < 0.3 * naive.mean(axis=1).std()
    assert np.cov(ours.T) == pytest.approx(np.cov(naive.T), rel=0.25, abs=2e-5)


def test_bootstrap_agrees_with_delong_on_one_category():
    joined = pictures(600, 5)
    resampled = bootstrap_areas(joined)
    for k in (1, 2):
        half = (delong(joined[f"true_{k}"], joined[f"task_{k}"]).high - score(joined)[k - 1]) / scoring.Z
        assert resampled[:, k - 1].std() == pytest.approx(half, rel=0.08)


def test_the_normal_interval_of_large_tables_is_what_the_bootstrap_comes_to(monkeypatch):
    first = pictures(3000, 2)
    noise = np.random.default_rng(1)
    second = first.assign(**{name: first[name] + noise.normal(0, 0.05, 3000) for name in ("task_1", "task_2")})
    exact_report, exact = report(first), compare(first, second)
    monkeypatch.setattr(scoring, "LARGE", 1000)
    normal_report, normal = report(first), compare(first, second)
    assert exact_report.methods[3] == "bootstrap" and normal_report.methods[3] == "normal"
    assert normal_report.bootstrapped is None
    for ours, theirs in ((normal_report.areas[3], exact_report.areas[3]), (normal[3].difference, exact[3].difference)):
        width = theirs.high - theirs.low
        assert ours.value == theirs.value
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.07 * width)
    assert normal[3].p == pytest.approx(exact[3].p, abs=0.03)


def test_intervals_cover_as_often_as_they_say():
    """Of 400 samples, the 95 % interval should hold the true area about 380 times."""
    rng = np.random.default_rng(8)
    truth = np.repeat([1, 0], [60, 240])
    true_area = 0.5 * (1 + math.erf(1 / 2))  # normal scores, means one apart: Phi(1 / sqrt(2))
    held = 0
    for _ in range(400):
        estimate = delong(truth, rng.normal(truth, 1))
        held += estimate.low <= true_area <= estimate.high
    assert 364 <= held <= 396


# --- what must hold for any data -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    truth=st.lists(st.booleans(), min_size=4, max_size=30).filter(lambda values: 1 < sum(values) < len(values) - 1),
    data=st.data(),
)
def test_properties_of_areas(truth, data):
    scores = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(truth), max_size=len(truth)))) / 9
    estimate, flipped = delong(truth, scores), delong(truth, 1 - scores)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.value == pytest.approx(1 - flipped.value)
    assert estimate.value == pytest.approx(delong(truth, scores**3).value)  # only the order counts
    same = delong_test(truth, scores, scores)
    assert (same.difference.value, same.p) == (0, 1)
    there, back = delong_test(truth, scores, flipped_scores := scores[::-1]), delong_test(truth, flipped_scores, scores)
    assert there.difference.value == pytest.approx(-back.difference.value) and there.p == pytest.approx(
        back.p, nan_ok=True
    )
    assert 0 <= there.p <= 1 or math.isnan(there.p)


def test_perfect_and_useless_predictions():
    truth = np.array([1, 1, 0, 0, 0])
    assert delong(truth, truth) == scoring.Estimate(1, 1, 1)
    assert delong(truth, np.full(5, 0.3)).value == 0.5
    assert math.isnan(delong_test(truth, truth, 1 - truth).p)  # neither varies
    one_positive, scores = np.array([1, 0, 0]), np.array([0.4, 0.5, 0.3])
    assert delong(one_positive, scores) == scoring.Estimate(0.5, 0, 1)  # its variance cannot be known
    assert math.isnan(delong_test(one_positive, scores, -scores).p)


def test_seeds():
    joined = pictures(100, 0)
    assert np.array_equal(bootstrap_areas(joined, seed=4), bootstrap_areas(joined, seed=4))
    assert not np.array_equal(bootstrap_areas(joined, seed=4), bootstrap_areas(joined, seed=5))


# --- comparing and combining -----------------------------------------------------------------------------------------


def test_compare():
    first = pictures(400, 1)
    worse = first.assign(task_1=np.random.default_rng(0).random(400))
    result = compare(first, worse.sample(frac=1, random_state=0))
    assert result[1].difference.value == pytest.approx(score(first)[0] - score(worse)[0])
    assert result[1].p < 1e-4 and result[1].difference.low > 0
    assert result[2].p == 1 and result[2].difference.value == 0
    assert result[3].difference.value == pytest.approx(score(first)[2] - score(worse)[2])
    assert result[3].p < 0.01 and result[3].difference.low > 0
    # Halving category 1's difference, the mean's interval is about half of category 1's.
    widths = [result[k].difference.high - result[k].difference.low for k in (1, 3)]
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.1)
    same = compare(first, first)
    assert all(same[k].p == 1 and same[k].difference.value == 0 for k in (1, 2, 3))


def test_bootstrap_p_is_never_zero():
    assert bootstrap_test(0.1, np.full(999, 0.1)).p == pytest.approx(2 / 1000)
    assert bootstrap_test(0.0, np.linspace(-1, 1, 1001)).p == 1


def test_ensemble():
    a = pd.DataFrame({"task_1": [0.0, 0.5, 1.0], "task_2": [0.1, 0.1, 0.4]}, index=["x", "y", "z"])
    b = pd.DataFrame({"task_1": [0.2, 0.1, 0.9], "task_2": [0.3, 0.2, 0.1]}, index=["z", "y", "x"])
    assert ensemble([a, b])["task_1"].tolist() == pytest.approx([0.45, 0.3, 0.6])
    ranks = ensemble([a, b], by_rank=True)
    assert ranks["task_1"].tolist() == pytest.approx([(0.5 + 2.5) / 6, (1.5 + 0.5) / 6, (2.5 + 1.5) / 6])
    assert ranks["task_2"].tolist() == pytest.approx([(1 + 0.5) / 6, (1 + 1.5) / 6, (2.5 + 2.5) / 6])


def test_what_averaging_gains():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 300)
    logits = 1.5 * np.eye(3)[targets] + rng.normal(size=(4, 300, 3))
    models = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    gain = scoring.averaging_gain(targets, models, resamples=500)
    alone = np.mean([scoring.mean_auc(targets, each) for each in models])
    assert gain.difference.value == pytest.approx(scoring.mean_auc(targets, models.mean(0)) - alone)
    assert 0 < gain.difference.low < gain.difference.value < gain.difference.high and gain.p < 0.01
    same = scoring.averaging_gain(targets, np.stack([models[0]] * 3), resamples=500)
    assert [same.difference.low, same.difference.high] == pytest.approx([0, 0])
    with pytest.warns(UndefinedMetricWarning):
        missing = scoring.averaging_gain(np.minimum(targets, 1), models, resamples=500)
    assert np.isnan(missing.difference.value) and np.isnan(missing.p)


def test_rank_in_the_challenge():
    assert [len(entries) for entries in scoring.LEADERBOARD.values()] == [23, 23, 23]
    assert all(a >= b for entries in scoring.LEADERBOARD.values() for a, b in pairwise(entries))
    assert rank_in_challenge(1, 0.9) == 1
    assert rank_in_challenge(1, 0.874) == 1  # as good as the best
    assert rank_in_challenge(1, 0.8736) == 1  # the board has three digits
    assert rank_in_challenge(1, 0.8734) == 2
    assert rank_in_challenge(3, 0.1) == 24


# --- thresholds and calibration --------------------------------------------------------------------------------------


def test_wilson_on_published_numbers():
    """Newcombe, 1998 (Statistics in Medicine 17:857), table I, method 3."""
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert (wilson(successes, trials).low, wilson(successes, trials).high) == pytest.approx((low, high), abs=5e-5)
    assert wilson(29, 29).high == 1 and wilson(29, 29).low == pytest.approx(0.8830, abs=5e-5)
    assert math.isnan(wilson(0, 0).value)


def test_operating_point():
    point = operating_point(np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.5, 0.3, 0.5, 0.2]), 0.5)
    assert point.matrix.tolist() == [[2, 1], [1, 1]]
    assert (point.sensitivity.value, point.specificity.value) == (1 / 2, 2 / 3)
    assert (point.ppv.value, point.npv.value) == (1 / 2, 2 / 3)
    assert point.balanced_accuracy == pytest.approx(7 / 12)
    nobody = operating_point(np.array([0, 1]), np.array([0.1, 0.2]), 0.9)
    assert math.isnan(nobody.ppv.value) and nobody.npv.value == 0.5


def test_threshold_for_sensitivity_is_the_highest_that_reaches_it():
    rng = np.random.default_rng(3)
    truth, probabilities = rng.integers(0, 2, 200), rng.random(200).round(2)
    for goal in (0.01, 0.82, 0.89, 0.95, 1.0):
        threshold = threshold_for_sensitivity(truth, probabilities, goal)
        assert operating_point(truth, probabilities, threshold).sensitivity.value >= goal
        assert operating_point(truth, probabilities, threshold + 0.005).sensitivity.value < goal
    assert threshold_for_sensitivity(np.ones(20), np.arange(20) / 20, 0.95) == 1 / 20  # 19 of 20 are just enough


def test_intervals_at_a_sensitivity_cover_as_often_as_they_say():
    """Normal scores, melanomas one higher: what holds at a sensitivity of 0.89 is known."""
    truth = np.repeat([1, 0], [120, 480])
    threshold = 1 - 1.2265281200366098  # 89 % of the melanomas' scores lie above it
    specificity = 0.5 * (1 + math.erf(threshold / math.sqrt(2)))
    hits, alarms = 0.89 * 120, (1 - specificity) * 480
    truths = {
        "specificity": specificity,
        "ppv": hits / (hits + alarms),
        "npv": 480 * specificity / (600 - hits - alarms),
    }
    rng, held = np.random.default_rng(5), dict.fromkeys((*truths, "sensitivity"), 0)
    for _ in range(200):
        scores = rng.normal(truth, 1)
        (point,) = points_at_sensitivities(truth, scores, [0.89], resamples=300)
        for name, value in truths.items():
            held[name] += getattr(point, name).low <= value <= getattr(point, name).high
        found = 0.5 * (1 + math.erf((1 - point.threshold) / math.sqrt(2)))  # of all melanomas there are
        held["sensitivity"] += point.sensitivity.low <= found <= point.sensitivity.high
    assert min(held.values()) >= 180, held


def test_threshold_for_balance_is_the_best_of_all():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 100)
    probabilities = np.clip(0.3 * truth + rng.normal(0.4, 0.2, 100), 0, 1)
    best = operating_point(truth, probabilities, threshold_for_balance(truth, probabilities)).balanced_accuracy
    others = [operating_point(truth, probabilities, t).balanced_accuracy for t in np.linspace(0, 1, 1001)]
    assert best >= max(others) - 1e-12
    assert 0 <= threshold_for_balance(truth, np.full(100, 0.5)) <= 1


def test_calibration():
    rng = np.random.default_rng(2)
    probabilities = rng.random(5000)
    honest = calibration(rng.random(5000) < probabilities, probabilities)
    assert honest.error < 0.03 and honest.brier == pytest.approx(1 / 6, abs=0.01)
    assert honest.bins["count"].sum() == 5000
    sure = calibration(np.array([1, 1, 0, 0]), np.array([1.0, 0.9, 0.9, 0.1]))
    assert sure.brier == pytest.approx((0.01 + 0.81 + 0.01) / 4)
    # Bins [0.9, 1]: mean 0.9333, two of three; [0.1, 0.2): 0.1, none.
    assert sure.error == pytest.approx(3 / 4 * abs(2.8 / 3 - 2 / 3) + 1 / 4 * 0.1)
    truth = rng.integers(0, 2, 5000)
    observed, predicted = calibration_curve(truth, probabilities, n_bins=10)
    bins = calibration(truth, probabilities).bins
    assert bins["observed"].to_numpy() == pytest.approx(observed)
    assert bins["predicted"].to_numpy() == pytest.approx(predicted)


def test_roc_band_holds_the_curve():
    joined = pictures(600, 9)
    grid, low, high = roc_band(joined["true_1"], joined["task_1"])
    assert np.all(low <= high) and low[0] == 0 and high[-1] == 1
    assert np.all(np.diff(low) >= 0)
    middle = ((low + high) / 2).mean()
    assert middle == pytest.approx(score(joined)[0], abs=0.03)
    assert grid[0] == 0 and grid[-1] == 1


def test_report_holds_it_all():
    joined = pictures(600, 4)
    result = report(joined, threshold=0.4)
    assert [area.value for area in result.areas.values()] == pytest.approx(score(joined))
    assert result.points[0].threshold == 0.4
    for point, goal in zip(result.points[1:], scoring.CHALLENGE_SENSITIVITIES, strict=True):
        assert goal <= point.sensitivity.value < goal + 0.02
        given = operating_point(joined["true_1"], joined["task_1"], point.threshold)
        assert given.matrix.tolist() == point.matrix.tolist()
        # Choosing the threshold on the same pictures leaves more to chance than being given it.
        assert point.specificity.high - point.specificity.low > 1.5 * (given.specificity.high - given.specificity.low)
    for k in (1, 2, 3):
        assert result.bootstrapped[k].low < result.areas[k].value < result.bootstrapped[k].high
    assert result.areas[3].high - result.areas[3].low < result.areas[1].high - result.areas[1].low


def test_calibrator_undoes_temperature_and_weights():
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 1.5, (20_000, 3))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = (honest.cumsum(1) < rng.uniform(size=(len(honest), 1))).sum(1)
    shifted = 2.5 * logits + [1.0, -1.5, 0.5]  # too sure, and in favour of some classes
    given = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    calibrator = fit_calibrator(targets, given)
    assert calibrator.temperature == pytest.approx(2.5, rel=0.05)
    assert calibrator.offsets == pytest.approx([-0.4, 0.6, -0.2], abs=0.05)
    assert np.abs(calibrator(given) - honest).mean() < 0.01
    before, after = (calibration(targets == 0, each[:, 0]).error for each in (given, calibrator(given)))
    assert after < 0.02 < 0.05 < before


def test_calibrator_of_perfect_predictions_stays_finite():
    probabilities = np.eye(3)[[0, 1, 2, 1]]
    calibrator = fit_calibrator([0, 1, 2, 1], probabilities)
    assert np.isfinite(calibrator.offsets).all() and np.isfinite(calibrator(probabilities)).all()
