import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from derma import figures
from derma.scoring import calibration, report

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def labelled(ax):
    return all((ax.get_title(), ax.get_xlabel(), ax.get_ylabel()))


def test_roc(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (50, 2))
    joined = pd.DataFrame(np.hstack([rng.random((50, 2)), truth]), columns=["task_1", "task_2", "true_1", "true_2"])
    points = report(joined, resamples=50).points
    figure = figures.roc(joined, points, tmp_path / "deep" / "roc.png")
    ax = figure.axes[0]
    assert labelled(ax)
    assert len(ax.collections) == 2  # the bands
    marked = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ax.lines if len(line.get_xdata()) == 1
    }
    assert marked == {(1 - point.specificity.value, point.sensitivity.value) for point in points}
    assert (tmp_path / "deep" / "roc.png").stat().st_size > 5000


def test_reliability_shows_every_bin():
    rng = np.random.default_rng(0)
    both = {k: calibration(rng.integers(0, 2, 80), rng.random(80)) for k in (1, 2)}
    figure = figures.reliability(both)
    assert all(ax.get_title() and ax.get_ylabel() for ax in figure.axes)
    assert figure.axes[1].get_xlabel()
    shares = figure.axes[0].containers[0].lines[0].get_ydata()
    assert shares.tolist() == both[1].bins["observed"].tolist()


def test_confusion_matrix_is_labelled_the_right_way_round():
    figure = figures.confusion(np.array([[8, 2], [1, 4]]), ["benign", "malignant"], "Melanoma")
    ax = figure.axes[0]
    assert labelled(ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["benign", "malignant"]
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert texts[(1, 0)] == "20.0%\n2 of 10"  # benign (row 0), predicted malignant (column 1)
    assert texts[(0, 1)] == "20.0%\n1 of 5"


def test_confusion_matrix_of_a_class_that_is_not_there():
    figure = figures.confusion(np.array([[0, 0], [1, 4]]), ["a", "b"], "title")
    assert [text.get_text() for text in figure.axes[0].texts][:2] == ["0.0%\n0 of 0", "0.0%\n0 of 0"]


def test_the_title_of_a_small_matrix_has_room():
    figure = figures.confusion(np.eye(2, dtype=int), ["benign", "malignant"], "Melanoma at threshold 0.143")
    figure.draw_without_rendering()
    ax, bar = figure.axes
    assert ax.title.get_window_extent().x1 < bar.get_window_extent().x0


@pytest.mark.parametrize("runs", [1, 3])
def test_learning_curves(runs):
    history = pd.DataFrame({"train_loss": [1, 0.5], "valid_loss": [1, 0.7], "valid_mean_auc": [0.6, 0.8]})
    history = pd.concat([history.assign(run=run, epoch=[1, 2], kept=[False, True]) for run in range(runs)])
    losses, areas = figures.learning_curves(history).axes
    assert labelled(losses) and labelled(areas)
    assert len(losses.lines) == 3 * runs and len(areas.lines) == 2 * runs
    kept = [line for line in areas.lines if line.get_marker() == "*"]
    assert [line.get_xydata().tolist() for line in kept] == [[[2, 0.8]]] * runs
    assert len(areas.get_legend().get_texts()) == 2  # one for each kind of line, and not for each run


def test_same_numbers_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        figures.confusion(np.eye(3, dtype=int), ["x", "y", "z"], "title", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
