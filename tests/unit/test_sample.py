import numpy as np
import pytest
from PIL import Image

from derma import sample
from derma.dataset import CLASSES, SPLITS, LesionData
from derma.sample import draw_image, draw_sample

ONE_EACH = dict.fromkeys(SPLITS, (1, 1, 1))


def contents(folder):
    return [(file.relative_to(folder), file.read_bytes()) for file in sorted(folder.rglob("*.jpg"))]


def test_same_seed_same_bytes_whatever_the_processes(tmp_path):
    for name, seed, workers in (("a", 5, 1), ("b", 5, 2), ("c", 6, 1)):
        draw_sample(tmp_path / name, ONE_EACH, (64, 48), seed, workers)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b != c
    assert len({content for _, content in a}) == 9  # no image is drawn twice


COLOURS = {"melanoma": (157.3, 100.9, 82.1), "nevus": (160.2, 105.3, 82.9), "seborrheic_keratosis": (142.1, 94.2, 71.7)}


@pytest.mark.parametrize("label", CLASSES)
def test_drawings_stay_as_they_were_for_the_published_numbers(label):
    images = [draw_image(label, np.random.default_rng((0, seed)), (64, 48)) for seed in range(8)]
    assert np.mean(images, axis=(0, 1, 2)) == pytest.approx(COLOURS[label], abs=0.2)


def test_nothing_is_overwritten_and_nothing_half_drawn(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        draw_sample(tmp_path / "mine")
    monkeypatch.setattr(sample, "_draw_job", int)  # a job is a tuple: fails in the worker
    with pytest.raises(TypeError):
        draw_sample(tmp_path / "new", ONE_EACH, (32, 32))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_command_line(tmp_path, capsys):
    folder = tmp_path / "drawn"
    assert sample.main([str(folder), "--size", "40x32", "--counts", "20", "7", "3"]) == 0
    counts = LesionData(folder).counts
    assert counts["all"].tolist() == [20, 7, 3, 30]
    assert counts.loc["train"].tolist() == [4, 13, 3, 20]
    assert counts.loc["test", list(CLASSES)].min() == 1
    assert Image.open(next(folder.rglob("*.jpg"))).size == (40, 32)
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    for target in (folder, tmp_path / "file" / "sample"):
        assert sample.main([str(target)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", ["--size 10x10", "--size large", "--size 70000x40", "--counts 9 9", "--counts 2 9 9", "--seed -1"]
)
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        sample.main(["nowhere", *arguments.split()])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_any_size_shows_the_same_lesion():
    large, small = (draw_image("melanoma", np.random.default_rng(0), size) for size in ((804, 534), (268, 178)))
    assert large.size == (804, 534)
    # The same but for noise and the finest texture.
    a, b = (np.asarray(each.resize((67, 44), Image.Resampling.BOX), float) for each in (large, small))
    assert np.abs(a - b).mean() < 12
