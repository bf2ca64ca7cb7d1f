"""A tiny trained run, applied as the command does it. That it repeats results.csv is in tests/notebooks."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, leave_held_out
from PIL import Image

import get_results
from derma import predict
from derma.classifier import Classifier
from derma.dataset import CLASSES
from derma.files import write_json
from derma.predict import TrainedRun, find_images
from derma.states import save_state


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs as the notebook leaves them, of two random networks each."""
    settings = {"model": "test_resnet", "frozen": False, "precision": "no", "folds": 2, "tta": True, "batch_size": 4}
    chosen = {"threshold": 0.3, "calibrator": {"temperature": 0.5, "offsets": [0.1, -0.1, 0.0]}, "test_size": 40}
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        for fold in range(2):
            network = Classifier("test_resnet", "none", frozen=False).state_dict()
            save_state({"network": network, "settings": settings}, folder / f"fold-{fold}.safetensors")
        write_json(chosen | {"settings": settings}, folder / "metrics.json")
        leave_held_out(folder, seed)
    return folders


@pytest.fixture
def run(runs, tmp_path, monkeypatch):
    """A copy of the first run, which a test may damage; it runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(runs[0], tmp_path / "run")


def predict_images(*arguments):
    return predict.main(list(map(str, arguments)))


def test_class_folders_are_predicted_and_scored_at_once(run, runs, drawn, capsys):
    assert predict_images(run, drawn / "test") == 0
    assert "predictions/predictions.csv: 11 predictions" in capsys.readouterr().out
    assert get_results.main(["predictions/predictions.csv", "--figures", "none"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Category 1 Score: ") and "Out of fold: mean AUC" in text
    one = pd.read_csv("predictions/predictions.csv")
    expected = TrainedRun(run).predict_files(find_images([drawn / "test"])[0])[1]
    assert (one[["task_1", "task_2"]].to_numpy() == expected[:, [0, 2]]).all()  # to the last digit

    # Several runs are averaged as an ensemble is.
    assert predict_images(runs[1], drawn / "test", "--out", "b/predictions.csv") == 0
    files = ["predictions/predictions.csv", "b/predictions.csv"]
    assert get_results.main(["--ensemble", *files, "--out", "c/mean.csv", "--figures", "none"]) == 0
    assert predict_images(*runs, drawn / "test", "--out", "d/mean.csv") == 0
    for name in ("mean.csv", "held_out.csv"):
        averaged, predicted = (pd.read_csv(f"{folder}/{name}") for folder in "cd")
        pd.testing.assert_frame_equal(averaged, predicted, check_exact=True)

    # The truth of the same images stays, also if they come from no class folders.
    Path("flat").mkdir()
    for file in drawn.glob("test/*/*"):
        shutil.copy(file, "flat")
    assert predict_images(run, "flat") == 0
    assert get_results.main(["predictions/predictions.csv", "--figures", "none"]) == 0

    # Other images replace the first ones and their truth, but never another file's, such as the published one.
    shutil.copytree(drawn / "valid", "mine")
    assert predict_images(run, "mine") == 0
    assert len(pd.read_csv("predictions/ground_truth.csv")) == 7
    for file in (ROOT / "results.csv", ROOT / "ground_truth.csv", min(Path("mine/nevus").iterdir())):
        shutil.copy(file, file.name)
    for place in ("mine", file.name):
        assert predict_images(run, place, "--out", "results.csv") == 2
        assert "not the truth of these images; delete it, or give --out a folder of its own" in capsys.readouterr().err


def test_a_few_images_are_printed_with_calibrated_probabilities_and_the_threshold(run, drawn, capsys):
    files = sorted((drawn / "test" / "nevus").iterdir())[:3]
    shutil.copy(files[0], "böse, 'a' b.jpg")
    shutil.copy(files[1], "-x.jpg")
    assert predict_images(run, "böse, 'a' b.jpg", "./-x.jpg", files[2]) == 0
    text = capsys.readouterr().out
    assert text.startswith("This is research") and "To score" not in text
    trained, table = TrainedRun(run), pd.read_csv("predictions/predictions.csv")
    assert table["Id"].tolist() == ["böse, 'a' b.jpg", "-x.jpg", files[2].as_posix()]
    for line, name, raw in zip(text.splitlines()[3:6], table["Id"], table["task_1"], strict=True):
        assert line.startswith(name) and ("suspicious" in line) == (raw >= trained.threshold)
        assert [f"{value:.3f}" for value in trained(name)] == [each for each in line.split() if each[:2] == "0."]
    assert not Path("predictions/ground_truth.csv").exists()  # no class folders


def test_bad_images_are_named_and_the_rest_is_done(run, drawn, capsys):
    shutil.copytree(drawn / "test", "mine")
    first = min(Path("mine/nevus").iterdir())
    Path("mine/nevus/torn.jpg").write_bytes(first.read_bytes()[:300])
    Path("mine/nevus/notes.txt").write_text("not an image")
    Path("mine/nevus/link.jpg").symlink_to("nowhere")
    Path("mine/loop").symlink_to("loop")
    os.mkfifo("mine/pipe.jpg")
    assert predict_images(run, "mine", first) == 0
    printed = capsys.readouterr()
    assert "11 predictions" in printed.out and "Not predicted: 4 files." in printed.err
    for name in ("torn.jpg", "link.jpg", "loop", "pipe.jpg"):
        assert f"{name}: " in printed.err


def test_equal_names_in_two_folders_are_two_images(run, drawn):
    for folder in CLASSES:
        for name, file in zip("ab", (drawn / "test" / folder).iterdir(), strict=False):
            Path("mine", folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, f"mine/{folder}/{name}.jpg")
    assert predict_images(run, "mine") == 0
    assert len(set(pd.read_csv("predictions/predictions.csv")["Id"])) == 6
    assert get_results.main(["predictions/predictions.csv", "--figures", "none"]) == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "metrics.json").unlink(), "no metrics.json, so it is no run, or one that is being trained"),
        (lambda run: (run / "fold-1.safetensors").unlink(), "fold-1.safetensors: missing or damaged"),
        (lambda run: (run / "held_out.csv").unlink(), "held_out.csv: no such file"),
        (lambda run: (run / "metrics.json").write_text('{"settings": {}}'), "of another version or damaged"),
        (lambda run: save_state({"network": {}, "settings": {"model": "gone", "frozen": False}},
                                run / "fold-0.safetensors"), "fold-0.safetensors: of another version"),
        (shutil.rmtree, "no metrics.json"),
    ],
)  # fmt: skip
def test_what_is_no_finished_run_is_one_sentence(damage, words, run, drawn, capsys):
    damage(run)
    assert predict_images(run, drawn / "test") == 2
    assert words in capsys.readouterr().err and not Path("predictions/predictions.csv").exists()


def test_no_images_no_place_and_an_interruption_leave_nothing(run, drawn, capsys, monkeypatch):
    Path("empty/.ipynb_checkpoints").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save("empty/.ipynb_checkpoints/a.png")
    for place, words in (("empty", "empty: holds no images"), ("missing", "missing: no such file or folder")):
        assert predict_images(run, drawn / "test", place) == 2
        assert words in capsys.readouterr().err
    for call, words in (
        ((), "name images after"),
        ((drawn, "--out", run / "results.csv"), "lies in a run's folder"),
        ((drawn, "--out", "empty"), "'empty' is a folder"),
    ):
        with pytest.raises(SystemExit):
            predict_images(run, *call)
        assert words in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(TrainedRun, "predict", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict_images(run, drawn / "test")
    full = OSError(28, "No space left", "x")
    monkeypatch.setattr(predict, "write_predictions", lambda *_: (_ for _ in ()).throw(full))
    assert predict_images(run, drawn / "test") == 2
    assert "x: No space left; name another place." in capsys.readouterr().err
    assert not Path("predictions/predictions.csv").exists()


def test_explanations_are_images_and_a_page_that_shows_them(run, drawn, capsys):
    shutil.copy(min((drawn / "test" / "nevus").iterdir()), "<b>&.jpg")
    assert predict_images(run, "<b>&.jpg", drawn / "test" / "melanoma", "--explain", "why") == 0
    page = (run.parent / "why" / "index.html").read_text()
    assert page.count("<img ") == 4 and "&lt;b&gt;&amp;.jpg" in page and "<b>&.jpg" not in page
    with Image.open("why/00001.png") as sheet, Image.open("<b>&.jpg") as image:
        assert sheet.size == (2 * image.width, image.height)
        left = sheet.convert("RGB").crop((0, 0, *image.size))
        assert left.tobytes() == image.convert("RGB").tobytes() != sheet.crop((image.width, 0, *sheet.size)).tobytes()
