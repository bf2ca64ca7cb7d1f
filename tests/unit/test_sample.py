import hashlib

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from derma import sample
from derma.dataset import CLASSES, LesionData
from derma.sample import COUNTS, draw_picture, draw_sample
from derma.scoring import mean_auc


def digest(folder) -> str:
    files = sorted(folder.rglob("*.jpg"))
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def test_same_seed_same_bytes_whatever_the_processes(tmp_path):
    counts = {"train": (2, 2, 2), "valid": (1, 1, 1), "test": (1, 1, 1)}
    draw_sample(tmp_path / "a", counts, (64, 48), seed=5, workers=1)
    draw_sample(tmp_path / "b", counts, (64, 48), seed=5, workers=2)
    draw_sample(tmp_path / "c", counts, (64, 48), seed=6, workers=1)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    assert LesionData(tmp_path / "a").counts.loc["all", "all"] == 12


def test_no_picture_is_drawn_twice(drawn):
    contents = [file.read_bytes() for file in drawn.rglob("*.jpg")]
    assert len(set(contents)) == len(contents) == 42


def test_nothing_is_overwritten_and_nothing_half_drawn(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        draw_sample(tmp_path / "mine")
    monkeypatch.setattr(sample, "_draw_job", int)  # a job is a tuple: fails in the worker
    with pytest.raises(TypeError):
        draw_sample(tmp_path / "new", {"train": (1, 1, 1), "valid": (1, 1, 1), "test": (1, 1, 1)}, (32, 32))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_command_line(tmp_path, capsys):
    folder = tmp_path / "drawn"
    assert sample.main([str(folder), "--size", "40x32", "--counts", "20", "7", "3"]) == 0
    counts = LesionData(folder).counts
    assert counts["all"].tolist() == [20, 7, 3, 30]
    assert counts.loc["train"].tolist() == [4, 13, 3, 20]
    assert counts.loc["test", list(CLASSES)].min() == 1
    assert Image.open(next(folder.rglob("*.jpg"))).size == (40, 32)
    assert sample.main([str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "10x10"],
        ["--size", "large"],
        ["--size", "70000x40"],
        ["--counts", "9", "9"],
        ["--counts", "2", "9", "9"],
        ["--seed", "-1"],
    ],
)
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        sample.main(["nowhere", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert sample.main([str(tmp_path / "file" / "sample")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_twelve_megapixels():
    picture = draw_picture("melanoma", np.random.default_rng(0), (4288, 2848))
    assert picture.size == (4288, 2848)
    # The same lesion at any size: made small, the drawing is the small drawing, but for noise and the finest texture.
    small = draw_picture("melanoma", np.random.default_rng(0), (268, 178))
    a, b = (np.asarray(p.resize((67, 44), Image.Resampling.BOX), float) for p in (picture, small))
    assert np.abs(a - b).mean() < 12


def test_proportions_are_those_of_the_challenge():
    challenge = {"train": (374, 1372, 254), "valid": (30, 78, 42), "test": (117, 393, 90)}
    for split, counts in COUNTS.items():
        expected = np.array(challenge[split]) / sum(challenge[split]) * sum(counts)
        assert np.abs(expected - counts).max() <= 1
    assert [sum(COUNTS[split]) for split in ("train", "valid", "test")] == [480, 90, 150]


def colour_histograms(folder, split) -> tuple[np.ndarray, np.ndarray]:
    """16 bins for each of R, G, B, H, S, V; square roots of shares, as is usual for histograms."""
    histograms, targets = [], []
    for target, name in enumerate(CLASSES):
        for file in sorted((folder / split / name).iterdir()):
            picture = Image.open(file)
            values = np.concatenate([np.asarray(picture), np.asarray(picture.convert("HSV"))], axis=2)
            counts = [np.histogram(values[..., k], 16, (0, 256))[0] for k in range(6)]
            histograms.append(np.sqrt(np.concatenate(counts) / values[..., 0].size))
            targets.append(target)
    return np.array(histograms), np.array(targets)


def test_colour_alone_does_not_solve_it(tmp_path):
    draw_sample(tmp_path / "sample")  # the whole default sample
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
    linear.fit(*colour_histograms(tmp_path / "sample", "train"))
    histograms, targets = colour_histograms(tmp_path / "sample", "test")
    area = mean_auc(targets, linear.predict_proba(histograms))
    assert 0.5 < area < 0.90
