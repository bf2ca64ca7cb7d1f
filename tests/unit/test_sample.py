import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from derma import sample
from derma.dataset import CLASSES, SPLITS
from derma.sample import draw_image, draw_sample
from derma.scoring import mean_auc

ONE_EACH = dict.fromkeys(SPLITS, (1, 1, 1))
COLOURS = {"melanoma": (157.3, 100.9, 82.1), "nevus": (160.2, 105.3, 82.9), "seborrheic_keratosis": (142.1, 94.2, 71.7)}


def test_same_seed_same_bytes(tmp_path):
    drawn = []
    for number, seed in enumerate((5, 5, 6)):
        draw_sample(tmp_path / str(number), ONE_EACH, (64, 48), seed)
        drawn.append([file.read_bytes() for file in sorted((tmp_path / str(number)).rglob("*.jpg"))])
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 9  # no image is drawn twice


@pytest.mark.parametrize("label", CLASSES)
def test_drawings_stay_as_they_were_for_the_published_numbers(label):
    images = [draw_image(label, np.random.default_rng((0, seed)), (64, 48)) for seed in range(8)]
    assert np.mean(images, axis=(0, 1, 2)) == pytest.approx(COLOURS[label], abs=0.2)


def test_nothing_is_overwritten_and_nothing_half_drawn(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    assert sample.main([str(tmp_path / "mine")]) == 2
    assert "exists already" in capsys.readouterr().err
    monkeypatch.setattr(sample, "_draw_job", int)  # a job is a tuple: fails in the worker
    with pytest.raises(TypeError):
        draw_sample(tmp_path / "new", ONE_EACH, (32, 32))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_colour_alone_does_not_solve_it():
    targets = np.repeat([0, 1, 2], 120)
    images = [draw_image(CLASSES[k], np.random.default_rng((1, i)), (96, 72)) for i, k in enumerate(targets)]
    histograms = [np.histogramdd(np.asarray(image).reshape(-1, 3), 4, [(0, 256)] * 3)[0].ravel() for image in images]
    train, classifier = np.arange(360) % 3 > 0, make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    classifier.fit(np.array(histograms)[train], targets[train])
    assert 0.5 < mean_auc(targets[~train], classifier.predict_proba(np.array(histograms)[~train])) < 0.90
