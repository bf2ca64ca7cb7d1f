"""A tiny trained run, applied as the command does it. That it repeats results.csv is in tests/notebooks."""

import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import leave_held_out
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

import get_results
from derma import predict
from derma.augmentation import views
from derma.classifier import Classifier
from derma.dataset import CLASSES, load_square
from derma.files import write_json
from derma.predict import TrainedRun, find_images
from derma.states import save_state
from derma.tables import read_table


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs as the notebook leaves them, of two random networks each."""
    settings = {"model": "test_resnet", "frozen": False, "precision": "no", "folds": 2, "tta": True, "batch_size": 4}
    chosen = {"threshold": 0.3, "calibration": {"temperature": 0.5, "offsets": [0.1, -0.1, 0.0]}, "test_size": 40}
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


def fails_at(count, function, error):
    """Return a function that works until its call of this number, which raises."""
    calls = []

    def call(*arguments):
        calls.append(arguments)
        if len(calls) == count:
            raise error
        return function(*arguments)

    return call


def test_class_folders_are_predicted_and_scored_at_once(run, runs, drawn, capsys):
    assert predict_images(run, drawn / "test") == 0
    assert "Predictions of 11 images: predictions/predictions.csv" in capsys.readouterr().out
    assert get_results.main(["predictions/predictions.csv", "--figures", "none"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Category 1 Score: ") and "Held out: mean AUC" in text

    # Several runs are averaged as an ensemble is.
    assert predict_images(runs[1], drawn / "test", "--out", "b/predictions.csv") == 0
    files = ["predictions/predictions.csv", "b/predictions.csv"]
    assert get_results.main(["--ensemble", *files, "--out", "c/mean.csv", "--figures", "none"]) == 0
    assert predict_images(*runs, drawn / "test", "--out", "d/mean.csv") == 0
    for name in ("mean.csv", "held_out.csv"):
        averaged, predicted = (pd.read_csv(f"{folder}/{name}") for folder in "cd")
        pd.testing.assert_frame_equal(averaged, predicted, check_exact=True)

    with pytest.raises(predict.RunError, match="holds out other images than"):
        other = Path(shutil.copytree(runs[1], "other"))
        leave_held_out(other, 0, counts=(9, 9, 9))
        predict.load_runs([run, other])


def test_only_what_an_earlier_call_wrote_is_replaced(run, drawn, capsys, monkeypatch):
    shutil.copytree(drawn / "valid", "mine")
    assert predict_images(run, drawn / "test") == predict_images(run, "mine") == 0
    assert len(pd.read_csv("predictions/ground_truth.csv")) == 7
    Path("flat").mkdir()
    for file in drawn.glob("valid/*/*"):  # without class folders there is no truth
        shutil.copy(file, "flat")
    assert predict_images(run, "flat") == 0 and not Path("predictions/ground_truth.csv").exists()
    capsys.readouterr()
    what = "changed since, or not of derma.predict; give --out a folder of its own."
    for name in ("ground_truth.csv", "predictions.csv", "others.csv", "predictions.json"):
        kept = Path("predictions", name)
        before = kept.read_bytes() if kept.exists() else None
        kept.write_text('{"files": ["by hand"]}')
        assert predict_images(run, "mine") == 2 and kept.read_text() == '{"files": ["by hand"]}'
        assert capsys.readouterr().err == f"{kept}: {what}\n"
        kept.write_bytes(before) if before else kept.unlink()
    predict_all = TrainedRun.predict_files
    with monkeypatch.context() as patch:  # a truth that comes while it works

        def slow(*call):
            Path("predictions/ground_truth.csv").write_text("by hand")
            return predict_all(*call)

        patch.setattr(TrainedRun, "predict_files", slow)
        assert predict_images(run, "mine") == 2
    Path("predictions/ground_truth.csv").unlink()

    # A full disk leaves the earlier tables, a kill what the next call replaces.
    tables = {file: file.read_bytes() for file in Path("predictions").glob("*.csv")}
    write, replace = Path.write_bytes, os.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fails_at(4, write, OSError(28, "No space left", "x")))
        assert predict_images(run, "mine") == 2
    assert "x: No space left; name another place." in capsys.readouterr().err
    assert tables == {file: file.read_bytes() for file in Path("predictions").glob("*.csv")}
    for place, at in (("mine", 3), (drawn / "test", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fails_at(at, replace, KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                predict_images(run, place)
    assert predict_images(run, "mine") == 0 and len(pd.read_csv("predictions/ground_truth.csv")) == 7


@pytest.mark.parametrize(("precision", "tta"), [("bf16", True), ("no", False)])
def test_it_computes_as_the_run_was_trained(run, drawn, precision, tta):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["settings"] |= {"precision": precision, "tta": tta}
    write_json(metrics, run / "metrics.json")
    files = find_images([drawn / "test" / "nevus"])[0][:4]
    trained = TrainedRun(run)
    images = torch.stack([pil_to_tensor(load_square(file, 40)) for file in files])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = [[network(view).float() for view in views(images, tta)] for network in trained.networks]
    expected = torch.stack([torch.stack(each).softmax(-1).mean(0).double() for each in logits]).mean(0).numpy()
    assert (trained.predict_files(files)[1] == trained.calibrator(expected)).all()


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


def test_bad_images_are_named_and_the_rest_is_done(run, drawn, capsys, monkeypatch):
    shutil.copytree(drawn / "test", "mine")
    first = min(Path("mine/nevus").iterdir())
    Path("mine/nevus/torn.jpg").write_bytes(first.read_bytes()[:300])
    Path("mine/nevus/notes.txt").write_text("not an image")
    Path("mine/nevus/link.jpg").symlink_to("nowhere")
    Path("mine/loop").symlink_to("loop")
    os.mkfifo("mine/pipe.jpg")
    shutil.copy(first, "mine/bell\a.jpg")
    Path("mine/closed").mkdir()
    entries = Path.iterdir

    def iterdir(folder):
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return entries(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert predict_images(run, "mine", first, first.resolve()) == 0
    printed = capsys.readouterr()
    assert "Predictions of 11 images" in printed.out
    assert "Refused: 6, listed in predictions/predictions.json" in printed.err
    refused = dict(json.loads(Path("predictions/predictions.json").read_text())["refused"])
    for name in ("nevus/torn.jpg", "nevus/link.jpg", "loop", "pipe.jpg", "bell\a.jpg", "closed"):
        assert refused[f"mine/{name}"] and f"mine/{name}: " in printed.err
    Path("mine/bcc").mkdir()
    shutil.copy(first, "mine/bcc/x.jpg")
    assert predict_images(run, "mine") == 0
    assert "No truth is written: mine/bcc/x.jpg is in none of the class folders" in capsys.readouterr().out


def test_equal_names_in_two_folders_are_two_images(run, drawn, capsys):
    for folder in CLASSES:
        for name, file in zip("ab", (drawn / "test" / folder).iterdir(), strict=False):
            Path("mine", folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, f"mine/{folder}/{name}.jpg")
    assert predict_images(run, "mine") == 0
    assert len(set(pd.read_csv("predictions/predictions.csv")["Id"])) == 6
    assert get_results.main(["predictions/predictions.csv", "--figures", "none"]) == 0
    shutil.copy("mine/nevus/a.jpg", "mine/nevus/A.png")
    assert predict_images(run, "mine") == 2
    assert "has the name of mine/nevus/A.png (case and extension do not count); rename one." in capsys.readouterr().err


def test_names_of_any_kind_are_predicted_and_written(run, drawn):
    names = ["a,b.jpg", "two\nlines.jpg", "日本.jpg", "{x}.jpg", os.fsdecode(b"l\xe9sion.jpg"), '"q".jpg', " .jpg"]
    for name in names:
        Path("mine/nevus").mkdir(parents=True, exist_ok=True)
        shutil.copy(min((drawn / "test" / "nevus").iterdir()), f"mine/nevus/{name}")
    assert predict_images(run, "mine", "--explain", "why") == 0
    assert len(read_table("predictions/predictions.csv").values) == len(names)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "metrics.json").unlink(), "a run that is being trained or was interrupted"),
        (lambda run: (run / "fold-1.safetensors").unlink(), "fold-1.safetensors: missing or damaged"),
        (lambda run: (run / "held_out.csv").write_text("torn"), "held_out.csv"),
        (lambda run: (run / "metrics.json").write_text('{"settings": {}}'), "not of a classifier, of another version"),
        (lambda run: save_state({"network": {}, "settings": {"model": "gone", "frozen": False}},
                                run / "fold-0.safetensors"), "fold-0.safetensors: not a classifier, or of another"),
        (shutil.rmtree, "not a trained run; name one first, models/<run>, then images"),
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
        ((drawn, "--out", run / "results.csv"), "lies in a run's folder"),
        ((drawn, "--out", "empty"), "'empty' is a folder"),
        ((drawn, "--out", "x.jpg"), "does not end in .csv"),
        ((), "name images after"),
    ):
        with pytest.raises(SystemExit):
            predict_images(run, *call)
        assert words in capsys.readouterr().err
    Path("page").mkdir()
    Path("page/index.html").write_text("mine")
    for extra, words in (
        (("--explain", "page"), "page/index.html: not of derma.predict"),
        (("--out", f"{'x' * 249}.csv"), "File name too long"),
        (("--out", "page/index.html/p.csv"), "index.html: File exists; name another place."),
    ):
        assert predict_images(run, drawn / "test", *extra) == 2
        assert words in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(TrainedRun, "predict", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict_images(run, drawn / "test")
    assert not Path("predictions/predictions.csv").exists()
    (run / "held_out.csv").unlink()  # a single run needs none
    assert predict_images(run, drawn / "test") == 0 and not Path("predictions/held_out.csv").exists()


def test_explanations_are_images_and_a_page_that_shows_them(run, drawn, monkeypatch):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["calibration"]["offsets"] = [-9, 9, 0]
    write_json(metrics, run / "metrics.json")  # nevus is the most probable class now
    shutil.copy(min((drawn / "test" / "nevus").iterdir()), "<b>&.jpg")
    explained, explain = [], TrainedRun.explain
    monkeypatch.setattr(TrainedRun, "explain", lambda *call: explained.append(call[2]) or explain(*call))
    assert predict_images(run, "<b>&.jpg", drawn / "test" / "melanoma", "--explain", "why") == 0
    page = (run.parent / "why" / "index.html").read_text()
    assert page.count("<img ") == 4 and "&lt;b&gt;&amp;.jpg" in page and "<b>&.jpg" not in page
    assert re.findall(r"Map for: (\w*)", page) == ["nevus"] * 4 and explained == [1] * 4
    with Image.open("why/00001.png") as sheet, Image.open("<b>&.jpg") as image:
        assert sheet.size == (2 * image.width, image.height)
        left = sheet.convert("RGB").crop((0, 0, *image.size))
        assert left.tobytes() == image.convert("RGB").tobytes() != sheet.crop((image.width, 0, *sheet.size)).tobytes()
