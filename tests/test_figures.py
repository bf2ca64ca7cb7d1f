import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from derma import figures

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
    figure = figures.roc(joined, tmp_path / "deep" / "roc.png")
    assert labelled(figure.axes[0])
    assert len(figure.axes[0].lines) == 3
    assert (tmp_path / "deep" / "roc.png").stat().st_size > 5000


def test_confusion_matrix_is_labelled_the_right_way_round():
    figure = figures.confusion(np.array([[8, 2], [1, 4]]), ["benign", "malignant"], "Melanoma")
    ax = figure.axes[0]
    assert labelled(ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["benign", "malignant"]
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert texts[(1, 0)] == "20.0%\n2 of 10"  # benign (row 0), predicted malignant (column 1)
    assert texts[(0, 1)] == "20.0%\n1 of 5"


def test_confusion_matrix_of_a_class_that_is_not_there():
    figures.confusion(np.array([[0, 0], [1, 4]]), ["a", "b"], "title")


def test_learning_curves():
    history = pd.DataFrame(
        {"epoch": [1, 2], "train_loss": [1, 0.5], "valid_loss": [1, 0.7], "valid_mean_auc": [0.6, 0.8]}
    )
    assert all(labelled(ax) for ax in figures.learning_curves(history, 2).axes)


def test_same_numbers_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        figures.confusion(np.eye(3, dtype=int), ["x", "y", "z"], "title", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
