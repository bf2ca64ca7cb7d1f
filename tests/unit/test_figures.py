import numpy as np
import pandas as pd
import torch

from derma import figures
from derma.scoring import report


def test_roc_marks_the_operating_points_and_reliability_every_bin(tmp_path):
    joined = pd.DataFrame(np.random.default_rng(0).random((50, 4)), columns=["task_1", "task_2", "true_1", "true_2"])
    joined[["true_1", "true_2"]] = joined[["true_1", "true_2"]].round()
    found = report(joined)
    ax = figures.roc(joined, found.points, tmp_path / "deep" / "roc.png").axes[0]
    marked = {tuple(line.get_xydata()[0]) for line in ax.lines if len(line.get_xdata()) == 1}
    assert marked == {(1 - point.specificity.value, point.sensitivity.value) for point in found.points}
    shares = figures.reliability(found.calibration).axes[0].containers[0].lines[0].get_ydata()
    assert shares.tolist() == found.calibration[1].bins["observed"].tolist()


def test_confusion_matrix_is_labelled_the_right_way_round(tmp_path):
    for name in ("a.png", "b.png"):
        ax = figures.confusion(np.array([[8, 2], [0, 0]]), ["benign", "malignant"], "", tmp_path / name).axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["benign", "malignant"]
    texts = {text.get_position(): text.get_text() for text in ax.texts}  # (1, 0): benign, predicted malignant
    assert (texts[1, 0], texts[0, 1]) == ("20.0%\n2 of 10", "0.0%\n0 of 0")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()  # same numbers, same bytes


def test_learning_curves_and_grids():
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [1, 0.5], "valid_loss": [1, 0.7], "valid_auc": [0.6, 0.8]})
    losses, areas = figures.learning_curves(pd.concat([history.assign(fold=k) for k in range(3)])).axes
    assert len(losses.lines) == 6 and len(areas.lines) == 3 and len(losses.get_legend().get_texts()) == 2
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    images = [image, torch.from_numpy(image).permute(2, 0, 1), image]
    axes = figures.grid(images, "abc", columns=2, overlays=[None, np.ones((4, 5)), None]).axes
    assert [len(ax.images) for ax in axes] == [1, 2, 1, 0]
    assert all((ax.images[0].get_array() == image).all() for ax in axes[:3])
