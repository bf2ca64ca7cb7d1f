"""The notebooks as a user runs them: from top to bottom, on a tiny sample, in a folder of its own."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from conftest import ROOT
from nbclient.exceptions import CellExecutionError
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import derma.execute
from derma.dataset import CLASSES
from derma.sample import draw_picture
from derma.scoring import score
from derma.settings import EVERY
from derma.tables import join, read_table
from derma.training import save_weights

CLASSIFICATION, STRUCTURE = "skin_lesion_classification.ipynb", "dataset_structure_visualization.ipynb"
QUICK = {
    "model": "shufflenet_v2_x0_5", "weights": "none", "image_size": "32", "batch_size": "8", "epochs": "2",
    "workers": "0", "precision": "no",
}  # fmt: skip
QUICK_MAP = {
    "model": "shufflenet_v2_x0_5", "weights": "none", "image_size": "64", "batch_size": "8", "epochs": "2",
    "channels": "8", "code": "12", "neighbours": "3", "precision": "no", "drop_leaks": "false",
}  # fmt: skip


@pytest.fixture
def execute(drawn, tmp_path, monkeypatch):
    """Return a function that executes a notebook in a new folder with settings and returns the two."""

    def execute_notebook(folder="executed", data=drawn, notebook=CLASSIFICATION, **settings):
        root = tmp_path / folder
        root.mkdir()
        shutil.copytree(ROOT / "derma", root / "derma", ignore=shutil.ignore_patterns("__pycache__"))
        for name in [name for name in os.environ if name.startswith("DERMA_")]:
            monkeypatch.delenv(name)
        quick = QUICK if notebook == CLASSIFICATION else QUICK_MAP
        for name, value in {**quick, "data": str(data), **settings}.items():
            monkeypatch.setenv(f"DERMA_{name.upper()}", str(value))
        shutil.copy(ROOT / notebook, root)
        derma.execute.execute(root / notebook, root / "executed.ipynb")
        return nbformat.read(root / "executed.ipynb", as_version=4), root

    return execute_notebook


def printed(notebook) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


RUNNER = """
import json, os, sys, nbformat, matplotlib
matplotlib.use("agg")
import accelerate, pandas, sklearn.metrics, torch, torchvision, tqdm, pydantic_settings  # once, and not in every run
import openTSNE, skimage.metrics, sklearn.manifold
from torch.utils import tensorboard
from derma import augmentation, check, dataset, duplicates, explorer, figures, scoring, similarity, tables, training
code = {}
for file in sys.argv[1:]:
    cells = nbformat.read(file, as_version=4).cells
    code[os.path.basename(file)] = "\\n\\n".join(cell.source for cell in cells if cell.cell_type == "code")
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(job["folder"])
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(job["settings"])
        text = code[job["notebook"]] + "\\n\\n" + job["then"]
        exec(compile(text, "notebook", "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    print(child, flush=True)
    print("end", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def as_variables(settings):
    return {f"DERMA_{name.upper()}": str(value) for name, value in settings.items()}


class Run(NamedTuple):
    code: int  # of the process's exit
    seconds: float
    text: str  # all that this folder's runs have printed
    root: Path


@pytest.fixture(scope="session")
def runner():
    """A process that has imported everything and forks for each run, which spares most of a run's time."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DERMA_")}
    environment |= {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUNNER, str(ROOT / CLASSIFICATION), str(ROOT / STRUCTURE)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    process = subprocess.Popen(command, env=environment, **pipes)
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()


def wait_for_checkpoints(folder, child, count, pause):
    """Wait until a run has saved so many new states, or has ended; then for some seconds more."""
    before, new = set(folder.glob("*checkpoint*.safetensors")), set()
    with suppress(ProcessLookupError):
        while len(new) < count:  # collected, since a training keeps no more than two
            new |= set(folder.glob("*checkpoint*.safetensors")) - before
            os.kill(child, 0)
            time.sleep(0.005)
    time.sleep(pause)


@pytest.fixture
def run(runner, drawn, tmp_path):
    """Return a function that runs the notebook's code in a folder, with settings and some code to follow it."""

    def run_code(folder="run", then="", kill_after=None, fails=False, notebook=CLASSIFICATION, **settings):
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        started = time.monotonic()
        quick = QUICK if notebook == CLASSIFICATION else QUICK_MAP
        job = {"folder": str(root), "then": then, "notebook": notebook}
        job["settings"] = as_variables({**quick, "data": drawn, **settings})
        runner.stdin.write(json.dumps(job) + "\n")
        child = int(runner.stdout.readline())
        if kill_after is not None:
            wait_for_checkpoints(root / "models" / "tiny", child, *kill_after)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        code = int(runner.stdout.readline().split()[1])
        seconds, text = time.monotonic() - started, (root / "log").read_text()
        assert code in ((0, -signal.SIGKILL) if kill_after else (1,) if fails else (0,)), text
        return Run(code, seconds, text, root)

    return run_code


def test_fine_tuning_writes_everything(execute):
    notebook, root = execute(workers=2)
    joined = join(read_table(root / "results.csv"), read_table(root / "ground_truth.csv", truth=True))
    assert len(joined) == 11
    expected = [f"Category {k} Score: {area:.3f}" for k, area in enumerate(score(joined), 1)]
    assert re.findall(r"Category \d Score: [\d.]+", printed(notebook)) == expected
    ids = pd.read_csv(root / "results.csv")["Id"]
    assert ids[0] == "data/tiny/test/melanoma/DRAWN_2000000.jpg" and not any(Path(i).is_absolute() for i in ids)
    for name in ("learning_curves", "confusion", "roc", "reliability", "reliability_calibrated", "benign_malignant"):
        assert (root / "images" / "tiny" / f"{name}.png").stat().st_size > 1000


def test_the_same_seed_repeats_and_another_does_not(run):
    first, again, other = (
        run(name, seed=seed, workers=workers).root / "results.csv"
        for name, seed, workers in (("first", 0, 2), ("again", 0, 0), ("other", 1, 0))
    )
    assert again.read_bytes() == first.read_bytes()
    assert other.read_bytes() != first.read_bytes()


def test_the_best_epoch_is_kept_and_not_the_last(run):
    # With a patience of one epoch, the last is by construction one that was no better than the kept one.
    _, _, text, root = run(epochs=40, patience=1, tta="false")
    models = root / "models" / "tiny"
    history, metrics = pd.read_csv(models / "history.csv"), json.loads((models / "metrics.json").read_text())
    assert "stopping" in text
    (kept,) = metrics["kept"]
    assert kept["epoch"] == len(history) - 1 < 39
    order = list(zip(history["valid_mean_auc"], -history["valid_loss"], strict=True))  # the loss breaks ties
    assert max(order) == order[kept["epoch"] - 1] > order[-1]
    with safe_open(models / "best.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about == {"epoch": kept["epoch"], "valid_mean_auc": kept["valid_mean_auc"]}
    # And what is said of the pictures held out is said of that network.
    assert metrics["valid_mean_auc"] == pytest.approx(kept["valid_mean_auc"])


def test_results_go_where_they_are_asked_to(run):
    root = run(results="new/folder/mine.csv", epochs=1).root
    assert len(read_table(root / "new/folder/mine.csv").values) == 11
    assert (root / "new/folder/ground_truth.csv").exists() and not (root / "results.csv").exists()


def test_frozen_backbone_trains_a_head_on_features(run):
    _, _, text, root = run(frozen="true", head_layers=3, tta="true", epochs=3)
    assert "(frozen)" in text
    assert len(read_table(root / "results.csv").values) == 11
    with safe_open(root / "models" / "tiny" / "best.safetensors", "pt") as file:  # the head's three layers alone
        assert sum(key.endswith("weight") for key in list(file.keys())) == 3


def test_features_are_computed_once_and_anew_for_changed_pictures(run, data_folder):
    settings = {"data": data_folder, "frozen": "true", "epochs": 2, "tta": "true", "drop_leaks": "false"}
    first = run(**settings)
    assert "as computed before" not in first.text
    before = (first.root / "results.csv").read_bytes()
    again = run(**settings, head_layers=2)
    assert "Features of 31 pictures: as computed before." in again.text
    assert "Features of 11 pictures: as computed before." in again.text
    third = run(**settings)
    assert (third.root / "results.csv").read_bytes() == before
    changed = data_folder / "test" / "nevus" / "DRAWN_2100000.jpg"
    Image.new("RGB", (64, 48), (90, 60, 50)).save(changed)
    (first.root / "log").unlink()
    last = run(**settings)
    assert "Features of 31 pictures: as computed before." in last.text and "Features of 11" not in last.text
    assert (last.root / "results.csv").read_bytes() != before


TUNED_IN_PART = """
untouched = make_classifier(cfg.seed).state_dict()
own = make_classifier(cfg.seed + 1).state_dict()  # the second network begins with the encoder's layers, not with these
assert not torch.equal(own["backbone.conv1.0.weight"], untouched["backbone.conv1.0.weight"])
for name, value in classifiers[0].state_dict().items():
    late = name.startswith(("backbone.stage4", "backbone.conv5", "head"))
    assert torch.equal(value, untouched[name]) != late or name.endswith("num_batches_tracked"), name
assert pool_features.shape[:2] == (len(pool), 8 + 2) and pool_features.dtype == torch.float16
learnt, held_out = examples(runs[0])
assert len(learnt) == 10 * len(runs[0].train) and held_out.tensors[0].shape[1] == 8
assert torch.equal(learnt.tensors[1][10:20], pool_targets[runs[0].train[1]].repeat(10))
assert torch.equal(learnt.tensors[0][18], pool_features[runs[0].train[1], 8])
seeded = SeededItems(data.pool(augment, larger), cfg.seed)  # the second picture's first augmented view
with torch.inference_mode():
    expected = parts_of(encoder.eval())[0](to_input(seeded[1][0].unsqueeze(0)))[0]
assert torch.allclose(pool_features[1, 8].float(), expected, atol=2e-3)
pictures = torch.stack([picture for picture, _ in test_folder])
with torch.inference_mode():
    whole = [each.eval()(to_input(view)).softmax(1) for view in views(pictures) for each in classifiers]
assert np.allclose(torch.stack(whole).mean(0), probabilities, atol=2e-3)
"""


def test_a_network_tuned_in_part_learns_from_maps_and_is_one_network(run, data_folder):
    settings = {
        "data": data_folder,
        "tuned_from": "stage4",
        "augmented_views": 2,
        "tta": "true",
        "epochs": 2,
        "seeds": 2,
    }
    _, _, text, root = run(then=TUNED_IN_PART, drop_leaks="false", **settings)
    assert "(trained from stage4 on)" in text
    with safe_open(root / "models" / "tiny" / "best-0.safetensors", "pt") as file:
        names = list(file.keys())
    assert any(name.startswith("backbone.conv1") for name in names)  # all of it is kept, for whoever wants to use it
    before = (root / "results.csv").read_bytes()
    again = run(drop_leaks="false", **settings)
    assert "Features of 62 pictures: as computed before." in again.text
    assert (root / "results.csv").read_bytes() == before


KEPT_FIRST = """
untouched = make_classifier(cfg.seed)
kept = {f"backbone.{name}" for name in dict(kept_layers(untouched).state_dict())}
early = () if cfg.frozen else ("backbone.stage4", "backbone.conv5", "backbone.fc")
assert kept == {name for name in untouched.state_dict() if name.startswith("backbone") and not name.startswith(early)}
for name, value in classifiers[0].state_dict().items():  # statistics and counts of batches, too
    assert torch.equal(value, untouched.state_dict()[name]) == (name in kept), name
learnt, held_out = examples(runs[0])
assert isinstance(learnt, Subset) and len(learnt) == len(runs[0].train) and learnt[0][0].dtype == torch.uint8
assert not list(models.glob("features*"))
"""


@pytest.mark.parametrize(
    "settings", [{"tuned_from": "stage4", "pooled_layers": "maxpool,stage2,stage4"}, {"frozen": 1}]
)
def test_what_is_kept_may_see_new_views_in_each_epoch(run, settings):
    run(then=KEPT_FIRST, precompute="false", drop_leaks="false", epochs=2, kept_epoch="last", **settings)


HEAD_FIRST = """
from safetensors.torch import load_file
for number, (run, head) in enumerate(zip(runs, first_heads)):
    features, labels = held_out_features(run).tensors
    with torch.inference_mode():
        alone = torch.stack([head(view).softmax(1) for view in features.unbind(1)]).mean(0).double().numpy()
    before = make_classifier(run.seed)
    assert not any(torch.equal(value, head.state_dict()[name]) for name, value in before.head.state_dict().items())
    pictures = torch.stack([picture for picture, _ in Subset(pool, run.held_out.tolist())])
    with torch.inference_mode():
        seen = [before.eval().features(to_input(view)) for view in views(pictures)]
        after = [classifiers[number].eval()(to_input(view)).softmax(1) for view in views(pictures)]
    assert torch.allclose(torch.stack(seen, dim=1), features, atol=1e-4)
    after = torch.stack(after).mean(0).double().numpy()
    assert np.abs(after - alone).max() > 1e-3  # it went on from there
    assert np.allclose(by_seed[0][np.searchsorted(held_out, run.held_out)], (alone + after) / 2, atol=1e-5)
    saved = load_file(models / f"first_head-{number}.safetensors")
    assert saved.keys() == head.state_dict().keys()
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in saved.items())
picture = load_square(paths[0], cfg.image_size)
assert np.allclose(classify(paths[0]), probabilities[0], atol=1e-5)
rates = [group["lr"] for group in parameter_groups(classifiers[0])]
assert rates == [cfg.lr_backbone, cfg.lr_backbone]
cfg.lr_backbone, cfg.epochs = 1e-12, 1  # a training that changes nothing begins with the head, and ends with it
classifier, _ = train(0)
for name, value in first_heads[0].state_dict().items():
    assert torch.allclose(classifier.head.state_dict()[name], value, atol=1e-6), name
print("head first")
"""


@pytest.fixture
def random_weights(tmp_path):
    """Return a file as of a pretrained network, which has learnt nothing."""
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_weights(torchvision.models.get_model(QUICK["model"]), weights)
    return weights


def test_a_head_trained_first_is_what_the_network_begins_with_and_is_averaged_with(run, random_weights):
    settings = {"weights": random_weights, "head_epochs": 3, "average_head": "true", "folds": 2, "tta": "true"}
    settings |= {"drop_leaks": "false", "lr_backbone": 1e-2, "batchnorm": "frozen", "epochs": 1, "kept_epoch": "last"}
    assert "head first" in run(then=HEAD_FIRST, **settings).text


BESIDE = """
for number, run in enumerate(runs):
    classifier, head = classifiers[number], first_heads[number]
    assert classifier.pooled_layers == [] and not isinstance(classifier.head[0], nn.BatchNorm1d)
    last = encoder.backbone(torch.zeros(1, 3, 32, 32))
    assert isinstance(head[0], nn.BatchNorm1d) and head[0].num_features > last.shape[1]
    squares = [torch.stack([pool[i][0] for i in run.held_out])]
    assert squares[0].shape[1:] == (3, 48, 48)
    squares += [squares[0].flip(3)]
    squares = [torch.rot90(square, turns, (2, 3)) for square in squares for turns in range(4)]
    with torch.inference_mode():
        whole = np.mean([classifier.eval()(to_input(square)).softmax(1).numpy() for square in squares], axis=0)
        alone = [head(encoder.eval().features(to_input(square))).softmax(1).numpy() for square in squares]
    expected = (whole + np.mean(alone, axis=0)) / 2
    assert np.allclose(by_seed[0][np.searchsorted(held_out, run.held_out)], expected, atol=1e-4)
assert np.allclose(classify(paths[0]), probabilities[0], atol=1e-4)
assert test_folder[0][0].shape == (3, 48, 48) and plain[0][0].shape == (3, 32, 32)
print("beside")
"""


def test_heads_may_stand_beside_networks_that_know_nothing_of_them_and_answer_at_another_size(run, random_weights):
    settings = {"weights": random_weights, "folds": 2, "drop_leaks": "false", "epochs": 1, "kept_epoch": "last"}
    _, _, _, root = run(evaluate="held_out", tta="false", **settings)
    trained = (root / "models" / "tiny" / "history.csv").read_bytes()
    settings |= {"head_epochs": 2, "average_head": "true", "start_from_head": "false", "pooled_layers": "stage2"}
    others = set((root / "models" / "tiny").glob("answers-*"))  # in one view: they are not this run's to remove
    text = run(then=BESIDE, evaluate="test", tta="true", test_size=48, **settings).text
    assert set((root / "models" / "tiny").glob("answers-*")) == others and len(others) == 2
    assert "beside" in text and text.count("Resumed after epoch 1.") == 2  # they are the same networks
    assert (root / "models" / "tiny" / "history.csv").read_bytes() == trained


def test_a_network_that_goes_on_from_a_head_is_another_where_the_head_learnt_from_other_features(run, random_weights):
    settings = {"weights": random_weights, "head_epochs": 2, "drop_leaks": "false", "epochs": 1, "evaluate": "held_out"}
    run(tta="false", **settings)
    for other in ({"tta": "true"}, {"tta": "false", "test_size": 48}):
        text = run(**other, **settings).text
        assert "of other settings" in text and "Resumed" not in text
    assert "Resumed after epoch 1." in run(tta="false", **settings).text


POOLED = """
pictures = torch.stack([picture for picture, _ in test_folder])
with torch.inference_mode():
    maps = encoder.eval().backbone.maxpool(encoder.backbone.conv1(to_input(pictures)))
    features = encoder.features(to_input(pictures))
expected = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
assert features.shape == (len(test_folder), 1024 + 2 * 24 + 2 * 48)
assert torch.allclose(features[:, 1024 : 1024 + 48], expected, atol=1e-5)
first = classifiers[0].head[0]
assert isinstance(first, nn.BatchNorm1d) and first.num_batches_tracked > 0 and not list(first.parameters())
with torch.inference_mode():
    whole = classifiers[0].eval()(to_input(pictures)).softmax(1)
assert np.allclose(whole, probabilities, atol=1e-4)
print("pooled")
"""


@pytest.mark.parametrize("settings", [{"frozen": "true", "augmented_views": 1}, {"ema": 0.5, "batchnorm": "frozen"}])
def test_the_head_sees_earlier_layers_too(run, settings):
    pooled = {"pooled_layers": "maxpool, stage2", "tta": "false", "drop_leaks": "false", "kept_epoch": "last"}
    assert "pooled" in run(then=POOLED, **pooled, **settings).text


EXAMINED = """
for run in runs:
    assert not set(run.train) & set(run.held_out) and len(run.train) + len(run.held_out) == len(pool)
for one in range(2):  # of each seed, every picture is held out once
    assert sorted(np.concatenate([run.held_out for run in runs[2 * one : 2 * one + 2]])) == list(range(len(pool)))
names = [Path(path).stem for path, _ in pool.samples]
first, second = names.index("DRAWN_0000001"), names.index("twin")
assert all((first in run.held_out) == (second in run.held_out) for run in runs)
mine = [answers_of(classifier, examples(run)[1]) for run, classifier in zip(runs, classifiers)]
first, second = (np.zeros((len(pool), 3)) for _ in range(2))
for run, answer in zip(runs, mine):
    (first if run.seed == 0 else second)[run.held_out] = answer
table = pd.read_csv(models / "held_out.csv")
assert np.abs(first - second).max() > 1e-4
assert list(table["seed"]) == [0] * len(pool) + [1] * len(pool)
assert np.allclose(table[list(CLASSES)], np.concatenate([first, second]), atol=2e-6)
assert np.allclose(valid_probabilities, (first + second) / 2)
assert list(table["Id"]) == pool.ids * 2 and list(table["truth"]) == [CLASSES[target] for target in pool.targets] * 2
single = [answers_of(classifier, test)[:, 0] for classifier in classifiers]
assert np.allclose(pd.read_csv(cfg.results)["task_1"], np.mean(single, axis=0), atol=2e-6)
assert np.allclose(alone, [scoring.mean_auc(targets, answers_of(classifier, test)) for classifier in classifiers])
before = kept_answers(0, test, test_folder.samples)
assert np.allclose(before, answers_of(classifiers[0], test))
with torch.no_grad():
    classifiers[0].head[-1].bias[0] += 1
after = kept_answers(0, test, test_folder.samples)
assert (after[:, 0] > before[:, 0]).all()  # of another network, anew
answers_of = None
assert np.array_equal(kept_answers(0, test, test_folder.samples), after)


def computed_anew(samples):
    try:
        kept_answers(0, test, samples)
    except TypeError:  # as there is nothing to compute with
        return True


assert computed_anew(test_folder.samples[1:])
answer_size += 8
assert computed_anew(test_folder.samples)
answer_size -= 8
cfg.tta = not cfg.tta
assert computed_anew(test_folder.samples)
cfg.tta = not cfg.tta
assert not computed_anew(test_folder.samples)
"""


@pytest.mark.parametrize("frozen", [False, True])
def test_seeds_and_folds_are_averaged_and_every_picture_is_held_out_once(run, data_folder, frozen):
    twin = Image.open(data_folder / "train" / "melanoma" / "DRAWN_0000001.jpg").transpose(Image.Transpose.ROTATE_90)
    twin.save(data_folder / "valid" / "melanoma" / "twin.jpg", quality=90)
    settings = {"folds": 2, "seeds": 2, "epochs": 1, "frozen": frozen, "tta": "false", "drop_leaks": "false"}
    _, _, text, root = run(data=data_folder, then=EXAMINED, **settings)
    assert "Network 4 of 4: seed 1, fold 1" in text and "Mean AUC of the 4 networks' average" in text
    models = root / "models" / "tiny"
    metrics = json.loads((models / "metrics.json").read_text())
    assert len(metrics["each_alone"]) == 4
    assert sorted(file.name for file in models.glob("best*")) == [f"best-{k}.safetensors" for k in range(4)]
    assert pd.read_csv(models / "history.csv")["run"].tolist() == [0, 1, 2, 3]
    assert not list(models.glob("checkpoint*"))


@pytest.mark.parametrize("head_first", [False, True])
def test_experiments_never_see_the_test_split_and_the_chosen_one_is_scored_without_training(
    run, data_folder, random_weights, head_first
):
    settings = {"data": data_folder, "epochs": 2, "kept_epoch": "last", "drop_leaks": "false", "tta": "false"}
    if head_first:
        settings |= {"weights": random_weights, "head_epochs": 2, "average_head": "true", "pooled_layers": "stage2"}
    _, _, text, root = run(evaluate="held_out", **settings)
    models = root / "models" / "tiny"
    assert len(list(models.glob("features-*"))) == head_first and not list(models.glob("features-test-*"))
    held = pd.read_csv(models / "held_out.csv")
    predicted = pd.read_csv(root / "results.csv").set_index("Id")["task_1"]
    assert sorted(predicted.index) == sorted(held["Id"]) and not any("/test/" in name for name in predicted.index)
    assert predicted[held["Id"]].to_numpy() == pytest.approx(held["melanoma"].to_numpy(), abs=2e-6)
    assert len(list(models.glob("answers-*"))) == 1
    trained = (models / "history.csv").read_bytes()
    kept = json.loads((models / "metrics.json").read_text())["kept"]
    assert [row["epoch"] for row in kept] == [2]
    (models / "history.csv").write_text("of a run with other settings in between")
    assert not list((root / "images" / "tiny").glob("*.png"))  # those of the published run stay
    _, _, text, _ = run(evaluate="test", **settings)
    assert "Resumed after epoch 2." in text and (models / "history.csv").read_bytes() == trained
    assert ("alone" in text) == head_first == ("heads" in json.loads((models / "metrics.json").read_text())["by_part"])
    assert pd.read_csv(models / "held_out.csv").equals(held)
    assert all("/test/" in name for name in pd.read_csv(root / "results.csv")["Id"])
    assert not list(models.glob("checkpoint*")) + list(models.glob("answers-*"))


CHOICES = """
learnt = examples(runs[0])[0]
loader = make_loader(learnt, 8, shuffle=True, seed=3, odds=class_odds(learnt))
learnt = torch.cat([targets for _ in range(30) for _, targets in loader])
shares = torch.bincount(learnt, minlength=3) / len(learnt)
assert (shares - 1 / 3).abs().max() < 0.09 < (torch.bincount(torch.tensor(pool.targets)) / len(pool)).max() - 1 / 3
assert make_criterion(runs[0]).weight.tolist() == [1, 1, 1]
assert (history["lr"] == cfg.lr_head).all()
picture = pool[0][0]
assert (picture[:, 12:20, 12:20] == picture[:, 12:13, 12:13]).all() and picture[:, :8].float().std() > 0
batch, both = mix(torch.rand(8, 3, 32, 32), torch.arange(8) % 3)
assert both.shape == (8, 3) and torch.allclose(both.sum(1), torch.ones(8)) and batch.shape == (8, 3, 32, 32)
print("mixed:", cfg.augmentation)
"""


def test_each_choice_does_what_it_says(run):
    choices = {"augmentation": "mixed", "balance": "sampling", "schedule": "constant", "blank": 0.5}
    mixed = run(then=CHOICES, drop_leaks="false", **choices)
    assert "mixed: mixed" in mixed.text
    losses = {}
    for augmentation in ("none", "light", "full", "mixed"):
        root = run(augmentation, augmentation=augmentation, epochs=1, drop_leaks="false").root
        losses[augmentation] = batch_losses(root)[0]
    assert len(set(losses.values())) == 4


LOOKED_AT = """
class Spot(nn.Module):  # answers by how bright the upper left is, which it looks at through a map of 4 x 4
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, 3, 1), nn.Flatten())
        nn.init.ones_(self.backbone[1].weight)
        self.head = nn.Linear(48, 3)
        with torch.no_grad():
            self.head.weight.zero_()[0, 0] = 1
    def forward(self, x): return self.head(self.backbone(x))
picture = torch.zeros(3, 32, 32, dtype=torch.uint8)
picture[:, :8, :8] = 250
heat = grad_cam(Spot(), picture, 0)
assert heat.shape == (32, 32) and heat.max() == 1 and heat[:4, :4].min() > 0.9 and heat[16:, 16:].max() == 0, heat
places = {"resnet18": "layer4.1.relu", "densenet121": "features.norm5", "vit_b_16": None}
for name, place in places.items():
    size = 224 if place is None else 64
    cfg.model, cfg.weights = name, "none"
    network = make_classifier(0)
    picture = (255 * torch.rand(3, size, size)).to(torch.uint8)
    layer = last_map(network, to_input(picture.unsqueeze(0)))
    assert next((key for key, each in network.backbone.named_modules() if each is layer), None) == place, name
    heat = grad_cam(network, picture, 1)
    assert heat is None if place is None else heat.shape == (size, size) and 0 <= heat.min() <= heat.max() <= 1
by_group = json.loads((models / "metrics.json").read_text())["by_group"]
assert sum(by_group[f"{size} lesion"]["pictures"] for size in ("small", "medium", "large")) == len(targets)
assert by_group["dark corners"]["melanomas"] + by_group["no dark corners"]["melanomas"] == 3
"""


def test_it_is_shown_where_the_network_looks(run):
    run(then=LOOKED_AT, drop_leaks="false", precision="bf16", epochs=1)


def batch_losses(folder) -> list[float]:
    """The loss of every training batch, from TensorBoard's files."""
    (run,) = (folder / "models" / "tiny" / "tensorboard").iterdir()
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return [event.value for event in events.Scalars("batch_loss")]


def torchrun(root, notebook, settings) -> Path:
    """Run a notebook in a new folder by two processes, with the README's command; return the folder."""
    shutil.copytree(ROOT / "derma", root / "derma", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / notebook, root)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DERMA_")}
    environment |= as_variables(settings)
    folder = Path(sys.executable).parent
    command = [folder / "torchrun", "--no-python", "--nproc-per-node", "2", folder / "ipython", notebook]
    environment |= {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(root / "ipython")}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("data = ") == 1 and "on 2 x cpu" in done.stdout
    return root


def test_two_processes_or_half_batches_train_as_one(run, drawn, tmp_path):
    """With frozen statistics of batch normalisation, which gloo cannot bring together, and without dropout."""
    settings = {"batchnorm": "frozen", "dropout": "0", "drop_leaks": "false", "ema": "0.5"}
    one = run("one", **settings).root
    halves = run("halves", batch_size=4, accumulate=2, compile="eager", **settings).root

    two = torchrun(tmp_path / "two", CLASSIFICATION, {**QUICK, "data": drawn, **settings, "batch_size": 4})
    expected = batch_losses(one)
    assert len(expected) == 6  # 24 pictures, batches of 8, two epochs
    assert np.allclose(batch_losses(two), expected, rtol=0, atol=1e-5)
    pairs = np.array(batch_losses(halves)).reshape(-1, 2)
    assert np.allclose(pairs.mean(1), expected, rtol=0, atol=1e-5)
    # 7 and 11 pictures: no duplicates that fill up, the same order, the same numbers.
    for file, numbers in (("results.csv", ["task_1", "task_2"]), ("models/tiny/held_out.csv", list(CLASSES))):
        tables = [pd.read_csv(root / file).set_index("Id") for root in (one, two, halves)]
        assert tables[0].index.tolist() == tables[1].index.tolist() == tables[2].index.tolist()
        for table in tables[1:]:
            assert np.abs(table[numbers] - tables[0][numbers]).to_numpy().max() <= 1e-5


def test_two_processes_keep_the_network_that_they_measured(run, drawn, tmp_path):
    """By default each normalises by its own batches' statistics, of which one process's are kept."""
    settings = {**QUICK, "data": drawn, "batch_size": 4, "drop_leaks": "false", "tta": "false"}
    root = torchrun(tmp_path / "two", CLASSIFICATION, settings)
    metrics = json.loads((root / "models" / "tiny" / "metrics.json").read_text())
    assert metrics["valid_mean_auc"] == pytest.approx(metrics["kept"][0]["valid_mean_auc"], abs=1e-6)


def test_an_interrupted_training_is_not_confused_by_another(run):
    """A is killed, B of other settings runs in the same folder, A goes on: as if B had never been."""
    a = {"epochs": 8, "patience": 8, "drop_leaks": "false"}
    unbroken = run("unbroken", **a)
    assert run("mixed", kill_after=(3, 0), **a).code != 0
    run("mixed", epochs=1, seed=1, drop_leaks="false")
    mixed = run("mixed", **a)
    assert "Resumed after epoch" in mixed.text
    for file in ("results.csv", "models/tiny/best.safetensors"):
        assert (mixed.root / file).read_bytes() == (unbroken.root / file).read_bytes()


INTERRUPTED = """
class Stop(Exception): pass
def stop(*_): raise Stop
def steps(history): return [(row["train_loss"], row["valid_loss"], row["lr"]) for row in history]
cfg.resume = False
_, expected = train(0)
usual, calls = to_input, iter(range(100))
to_input = lambda batch: stop() if next(calls) == 1 else usual(batch)  # at the second batch, amid a step of two
try: train(0)
except Stop: pass
to_input = usual
_, again = train(0)  # the cell run a second time
assert steps(again) == steps(expected), (again, expected)
"""


def test_a_cell_interrupted_and_run_again_trains_as_if_it_had_not_been(run):
    run(then=INTERRUPTED, accumulate=2, batch_size=4, drop_leaks="false")


LAST_WINDOW = """
from derma.dataset import make_loader
cfg.resume, cfg.epochs, cfg.warmup_epochs = False, 1, 0.0
seen = []
torch.optim.AdamW.step, usual_step = lambda self, *a, **k: seen.append(
    [p.grad.clone() for group in self.param_groups for p in group["params"]]), torch.optim.AdamW.step
train(0)
torch.optim.AdamW.step = usual_step
network, criterion = make_classifier(runs[0].seed), make_criterion(runs[0])
start_epoch(network, kept_layers(network))
loader = make_loader(examples(runs[0])[0], cfg.batch_size, shuffle=True, seed=runs[0].seed)
*_, (batch, targets) = loader  # the third of three batches is a window of its own
criterion(network(to_input(batch)), targets).mean().backward()
groups = make_optimizer(parameter_groups(network), 1, 1)[0].param_groups
expected = [p.grad for group in groups for p in group["params"]]
assert len(seen) == 2 and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(seen[1], expected))
"""


def test_a_last_window_of_few_batches_counts_as_a_whole_step(run):
    run(then=LAST_WINDOW, accumulate=2, batchnorm="frozen", dropout=0, drop_leaks="false")


INGREDIENTS = """
x = torch.arange(2 * 3 * 32 * 32, dtype=torch.uint8).reshape(2, 3, 32, 32)
assert len({view.numpy().tobytes() for view in views(x)}) == 8
classifier = classifiers[0].eval()
batches = [(x, torch.tensor([0, 1]))]
answers, _ = predict(classifier, batches, make_criterion(runs[0]))
by_hand = torch.stack([classifier(to_input(view)).softmax(1) for view in views(x)]).mean(0)
assert np.allclose(answers, by_hand.detach().numpy(), atol=1e-5)
weights = make_criterion(runs[0]).weight
assert weights[0] == weights[2] > weights[1]  # 6, 12 and 6 pictures
convolution = next(p for p in classifier.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
assert convolution.is_contiguous(memory_format=torch.channels_last)
rates = [group["lr"] for group in make_optimizer(parameter_groups(classifier), 10, 1)[0].param_groups]
assert rates == [cfg.lr_head, cfg.lr_backbone] and rates[0] != rates[1]
compiled = []
usual = nn.Module.compile
nn.Module.compile = lambda self, *a, **k: (compiled.append(k), usual(self, *a, **k))[1]
cfg.compile, cfg.resume, cfg.epochs = "eager", False, 1
averages = []
usual_average = moving_average
moving_average = lambda *a: averages.append(usual_average(*a)) or averages[-1]
trained, _ = train(0)
assert compiled == [{"backend": "eager"}]
saved, average = trained.state_dict(), averages[0].module.state_dict()
assert all(torch.equal(saved[name].float(), average[name].float()) for name in saved)
assert accelerator.mixed_precision == "bf16"
"""


def test_every_ingredient_is_at_work(run):
    run(then=INGREDIENTS, ema=0.5, tta="true", precision="bf16", drop_leaks="false")


SPAWNED = """
import multiprocessing.forkserver
from derma.dataset import make_loader
learnt = examples(runs[0])[0]
alone = [batch for batch, _ in make_loader(learnt, 8, shuffle=True, seed=3)]
for method in ("spawn", "forkserver"):
    loader = make_loader(learnt, 8, shuffle=True, seed=3, workers=1)
    loader.multiprocessing_context = method
    assert all(torch.equal(a, b) for a, (b, _) in zip(alone, loader, strict=True))
del loader
multiprocessing.forkserver._forkserver._stop()  # os._exit, which ends this process, would leave it
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no forkserver")
def test_the_training_loader_works_however_workers_are_started(run):
    run(then=SPAWNED, epochs=1, drop_leaks="false")


def test_unreadable_pictures_are_named_and_left_out(run, data_folder):
    (data_folder / "test" / "nevus" / "DRAWN_2100000.jpg").write_bytes(b"not a picture")
    _, _, text, root = run(data=data_folder, epochs=1, patience=1)
    assert "left out: 1 of the pictures" in text and "DRAWN_2100000.jpg" in text
    assert len(read_table(root / "results.csv").values) == 10


BAD_SETTINGS = [
    ({"epoch": "3"}, "DERMA_EPOCH is not a setting"),
    ({"epochs": "0"}, "DERMA_EPOCHS is '0': Input should be greater than or equal to 1."),
    ({"model": "resnet1"}, "no classifier 'resnet1'"),
    ({"weights": "missing.safetensors"}, "missing.safetensors: no such weights file"),
    ({"data": "nowhere"}, "nowhere: no such folder"),
    ({"batch_size": "32"}, "24 training pictures do not fill a batch; set DERMA_BATCH_SIZE lower."),
    ({"tuned_from": "layer4"}, "There is no layer 'layer4' with others before it; the network has conv1,"),
    ({"tuned_from": "stage4", "frozen": "true"}, "DERMA_TUNED_FROM is 'stage4': Value error, nothing of a frozen"),
    ({"pooled_layers": "fc"}, "A layer to pool must give maps (N, C, H, W)"),
    ({"pooled_layers": "layer9"}, "There is no layer 'layer9' to pool; shufflenet_v2_x0_5 has conv1,"),
    (
        {"tuned_from": "stage4", "pooled_layers": "stage2"},
        "DERMA_POOLED_LAYERS is 'stage2': Value error, of maps computed",
    ),
    (
        {"augmented_views": "2"},
        "DERMA_AUGMENTED_VIEWS is '2': Value error, only what DERMA_FROZEN or DERMA_TUNED_FROM compute",
    ),
    (
        {"augmented_views": "2", "frozen": "true", "precompute": "false"},
        "DERMA_AUGMENTED_VIEWS is '2': Value error, only what DERMA_FROZEN or DERMA_TUNED_FROM compute",
    ),
    ({"precompute": "false"}, "DERMA_PRECOMPUTE is 'false': Value error, nothing is kept as it is; set DERMA_FROZEN"),
    ({"head_epochs": "2"}, "DERMA_HEAD_EPOCHS is '2': Value error, only a pretrained backbone that is trained"),
    (
        {"head_epochs": "2", "weights": "some.safetensors", "tuned_from": "stage4"},
        "DERMA_HEAD_EPOCHS is '2': Value error, of maps computed once the head cannot be trained first",
    ),
    ({"average_head": "true"}, "DERMA_AVERAGE_HEAD is 'true': Value error, no head is trained first; set DERMA_HEAD"),
    (
        {"start_from_head": "false"},
        "DERMA_START_FROM_HEAD is 'false': Value error, the heads trained first would be of no use; set DERMA_AVERAGE",
    ),
    ({"test_size": "48", "frozen": "true"}, "DERMA_TEST_SIZE is '48': Value error, what is computed once has one size"),
    ({"folds": "1"}, "DERMA_FOLDS is '1': Value error, one fold would leave nothing to learn from"),
    ({"folds": "9"}, "9 folds are too many: one of them lacks a class; set DERMA_FOLDS lower."),
    ({"compile": "true"}, "DERMA_COMPILE is 'true': Input should be 'no', 'eager' or 'inductor'."),
    ({"lr_head": "inf"}, "DERMA_LR_HEAD is 'inf': Input should be a finite number."),
    ({"lr_head": "1e30", "lr_backbone": "1e30"}, "the loss is not finite; set DERMA_LR_HEAD"),
]


@pytest.mark.parametrize(("settings", "words"), BAD_SETTINGS)
def test_bad_settings_are_said_clearly(run, settings, words):
    assert words in run(fails=True, drop_leaks="false", **settings).text.splitlines()[-1]


def test_a_failing_cell_fails_the_execution(execute):
    with pytest.raises(CellExecutionError, match="DERMA_EPOCH is not a setting"):
        execute(epoch="3")


def test_the_data_set_is_mapped(execute):
    notebook, root = execute(notebook=STRUCTURE, ablation_epochs=1)
    text, models = printed(notebook), root / "models" / "tiny"
    assert "old: 755,659 parameters" in text
    encodings = np.load(models / "encodings.npz")
    assert encodings["codes"].shape == (42, 12) and np.isfinite(encodings["codes"]).all()
    assert sorted(zip(*np.unique(encodings["splits"], return_counts=True))) == [
        ("test", 11),
        ("train", 24),
        ("valid", 7),
    ]
    assert len(set(encodings["files"])) == 42 and set(encodings["classes"]) == set(CLASSES)
    metrics = json.loads((models / "autoencoder_metrics.json").read_text(), parse_constant=pytest.fail)
    assert set(metrics["test_mse"]) == {"old", "new", "12 components", "23 components"}
    assert len(metrics["ablation"]) == 4
    assert set(pd.read_csv(models / "autoencoder_history.csv")["network"]) == {"old", "new"}
    assert (models / "explorer.html").stat().st_size > 100_000
    assert not list(models.glob("*checkpoint*")) and not list(models.glob("*variant*"))
    figures = sorted(file.stem for file in (root / "images" / "tiny").glob("*.png"))
    # No figure that shows pictures is on file.
    assert figures == [
        "autoencoder_curves", "autoencoder_spectrum", "map_autoencoder", "map_placed", "map_stability", "maps"
    ]  # fmt: skip


MAPPED = """
before = np.array(old_map)
again = np.asarray(old_map.transform(codes[train]))  # a picture that is on the map lands near itself
assert np.array_equal(before, np.asarray(old_map))
away = np.linalg.norm(again - before, axis=1)
apart = np.linalg.norm(before[:, None] - before[None], axis=2)
assert np.median(away) < 0.25 * np.median(apart)
one, picture = transform(files["test"][3])
assert np.allclose(one, codes[every_file.index(files["test"][3])], atol=1e-4)
assert picture.shape == (3, 64, 64)
assert np.isclose(((picture - true[3]) ** 2).mean(), errors[every_file.index(files["test"][3])], atol=1e-5)
print("representations:", *representations, sep="|")
"""


def test_new_pictures_are_placed_and_a_fine_tuned_backbone_is_compared(run):
    run("both", epochs=1)
    text = run("both", notebook=STRUCTURE, then=MAPPED).text
    assert "|principal components|autoencoder|shufflenet_v2_x0_5, fine-tuned\n" in text
    other = run("both", notebook=STRUCTURE, model="resnet18").text  # another than the checkpoint's
    assert "best.safetensors: not a whole resnet18" in other


def test_a_killed_autoencoder_goes_on_as_if_nothing_had_happened(run):
    settings = {"notebook": STRUCTURE, "epochs": 3}
    unbroken = run("unbroken", **settings)
    for count in (1, 2):
        assert run("broken", kill_after=(count, 0.1), **settings).code != 0
    broken = run("broken", **settings)
    assert "Resumed after epoch" in broken.text
    for name in ("old", "new"):
        file = f"models/tiny/autoencoder-{name}.safetensors"
        assert (broken.root / file).read_bytes() == (unbroken.root / file).read_bytes()


def test_two_processes_train_the_autoencoder_as_one(run, drawn, tmp_path):
    one = run("one", notebook=STRUCTURE).root
    two = torchrun(tmp_path / "two", STRUCTURE, {**QUICK_MAP, "data": drawn, "batch_size": 4})
    histories = [pd.read_csv(root / "models" / "tiny" / "autoencoder_history.csv") for root in (one, two)]
    for column in ("train_mse", "valid_mse"):
        assert np.abs(histories[0][column] - histories[1][column]).max() < 1e-5


BAD_MAPS = [
    ({"image_size": "100"}, "DERMA_IMAGE_SIZE is '100': Input should be a multiple of 32."),
    ({"code": "4000"}, "DERMA_CODE is '4000': Input should be less than or equal to 3072."),
    ({"batch_size": "32"}, "24 training pictures do not fill a batch; set DERMA_BATCH_SIZE lower."),
    ({"data": "nowhere"}, "nowhere: no such folder"),
]


@pytest.mark.parametrize(("settings", "words"), BAD_MAPS)
def test_bad_settings_of_the_map_are_said_clearly(run, settings, words):
    assert words in run(fails=True, notebook=STRUCTURE, **settings).text.splitlines()[-1]


def test_the_names_of_all_settings_are_known():
    """derma/settings.py lists them, so that each notebook tells the other's from a misspelt one."""
    fields = set()
    for notebook in ROOT.glob("*.ipynb"):
        code = next(
            cell.source for cell in nbformat.read(notebook, as_version=4).cells if "class Settings" in cell.source
        )
        code = code[re.search(r"^class \w+\(BaseSettings", code, flags=re.MULTILINE).start() :]
        fields |= set(re.findall(r"^    (\w+): ", code, flags=re.MULTILINE))
    assert fields == EVERY


@pytest.mark.parametrize("name", [CLASSIFICATION, STRUCTURE])
class TestCommitted:
    def test_it_is_small_executed_in_order_and_without_errors(self, name):
        assert (ROOT / name).stat().st_size < 2e6
        notebook = nbformat.read(ROOT / name, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        for cell in code:
            for output in cell.outputs:
                assert output.output_type != "error"
                text = output.get("text", "")
                assert output.get("name") != "stderr", text
                assert text.count("\n") <= 45 and "Warning" not in text and str(ROOT) not in text

    def test_it_ran_on_the_drawn_sample(self, name):
        text = printed(nbformat.read(ROOT / name, as_version=4))
        assert "data = data/sample" in text


def test_committed_classifier_learnt_the_sample():
    text = printed(nbformat.read(ROOT / CLASSIFICATION, as_version=4))
    assert float(re.search(r"Category 3 Score: ([\d.]+)", text)[1]) >= 0.90


def test_readme_shows_what_the_committed_notebook_printed():
    text = printed(nbformat.read(ROOT / CLASSIFICATION, as_version=4))
    scores = re.findall(r"Category \d Score: [\d.]+", text)
    assert len(scores) == 3 and "\n".join(scores) in (ROOT / "README.md").read_text()


def test_published_files_belong_together(published):
    results, truth = (pd.read_csv(published / name) for name in ("results.csv", "ground_truth.csv"))
    assert results["Id"].tolist() == truth["Id"].tolist()
    assert len(results) == 600
    assert [truth["task_1"].sum(), truth["task_2"].sum()] == [117, 90]
    assert np.all(results[["task_1", "task_2"]].sum(axis=1) <= 1 + 1e-6)


def test_leaking_training_pictures_are_left_out_and_extra_ones_taken_in(run, data_folder, tmp_path):
    leak = Image.open(data_folder / "test" / "nevus" / "DRAWN_2100000.jpg").transpose(Image.Transpose.ROTATE_90)
    leak.save(data_folder / "train" / "nevus" / "leak.jpg", quality=80)
    (tmp_path / "more" / "melanoma").mkdir(parents=True)
    for seed in range(3):
        picture = draw_picture("melanoma", np.random.default_rng((9, seed)), (64, 48))
        picture.save(tmp_path / "more" / "melanoma" / f"extra{seed}.jpg", quality=95)
    settings = {"data": data_folder, "extra": tmp_path / "more", "epochs": 1}
    settings["then"] = "print('learnt from', data.counts.loc['train'].tolist())"
    text = run("dropped", **settings).text
    assert "Left out of training, since they share a photograph: 1 (1 with test)." in text
    assert "learnt from [9, 12, 6, 27]" in text
    text = run("kept", drop_leaks="false", **settings).text
    assert "Left out" not in text and "learnt from [9, 13, 6, 28]" in text


def test_killed_ten_times_and_resumed_it_ends_the_same(run):
    """SIGKILL at random moments: the weights and the predictions are those of the run that nobody disturbed."""
    settings = {"epochs": 8, "patience": 8, "drop_leaks": "false", "ema": 0.9, "seeds": 2, "accumulate": 2}
    unbroken = run("unbroken", **settings)
    chance, kills = random.Random(0), 0
    while kills < 10:
        moment = chance.choice((0, 1, 2)), chance.uniform(0, 0.4)
        kills += run("broken", kill_after=moment, **settings).code != 0
    broken = run("broken", **settings)
    for file in ("results.csv", "models/tiny/best-0.safetensors", "models/tiny/best-1.safetensors"):
        assert (broken.root / file).read_bytes() == (unbroken.root / file).read_bytes()
    kept = ["run", "epoch", "train_loss", "valid_loss", "valid_mean_auc", "lr"]
    histories = [pd.read_csv(each.root / "models/tiny/history.csv")[kept] for each in (broken, unbroken)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    for each in (broken, unbroken):  # what a killed process had written beyond its checkpoint does not count twice
        for folder in sorted((each.root / "models/tiny/tensorboard").iterdir()):
            events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload().Scalars("batch_loss")
            assert [event.step for event in events] == list(range(1, 25))
    assert len(set(re.findall(r"Resumed after epoch (\d)", broken.text))) >= 4
    assert not list((broken.root / "models/tiny").glob("checkpoint*"))


def test_a_preset_fills_in_what_is_not_given(monkeypatch, tmp_path):
    cell = next(
        cell.source for cell in nbformat.read(ROOT / CLASSIFICATION, as_version=4).cells if cell.cell_type == "code"
    )
    for name in [name for name in os.environ if name.startswith("DERMA_")]:
        monkeypatch.delenv(name)

    def settings(**given):
        for name, value in as_variables(given).items():
            monkeypatch.setenv(name, value)
        space = {}
        exec(cell, space)
        return space["cfg"]

    assert settings().model == "resnet18" and settings().folds == 0  # the drawn sample
    own = settings(data=tmp_path / "mine")
    assert (own.model, own.folds, own.kept_epoch) == ("resnet50", 0, "best")
    challenge = settings(data=tmp_path / "isic2017", epochs=30)
    assert (challenge.model, challenge.folds, challenge.kept_epoch, challenge.epochs) == ("densenet169", 5, "last", 30)
    assert (challenge.head_epochs, challenge.average_head, challenge.pooled_layers.count(",")) == (8, True, 2)
    assert (challenge.start_from_head, challenge.image_size, challenge.test_size) == (False, 192, 240)
    for given in ({"frozen": "true"}, {"frozen": "false", "tuned_from": "features.denseblock4"}):
        part = settings(**given)  # what was chosen for the whole network does not get into the way of others
        assert (part.head_epochs, part.average_head, part.pooled_layers, part.test_size) == (0, False, "", None), given
    monkeypatch.delenv("DERMA_FROZEN")
    monkeypatch.delenv("DERMA_TUNED_FROM")
    monkeypatch.delenv("DERMA_EPOCHS")
    assert settings().epochs == 8 and settings(weights="none").head_epochs == 0
    former = settings(weights="imagenet", test_size=192, average_head="false")
    assert (former.head_epochs, former.pooled_layers, former.start_from_head, former.test_size) == (0, "", True, 192)
    assert settings(head_epochs=0, start_from_head="true", test_size=200).test_size == 200
    monkeypatch.delenv("DERMA_TEST_SIZE")
    monkeypatch.delenv("DERMA_HEAD_EPOCHS")
    assert settings(image_size=128).test_size is None  # 240 belongs to 192
    monkeypatch.delenv("DERMA_IMAGE_SIZE")
    started = settings(weights="imagenet", start_from_head="true", average_head="true")  # as the preset has heads
    assert (started.start_from_head, started.average_head, started.head_epochs) == (True, True, 8)
    monkeypatch.delenv("DERMA_AVERAGE_HEAD")
    monkeypatch.delenv("DERMA_START_FROM_HEAD")
    other = settings(weights="imagenet", model="resnet50")
    assert (other.folds, other.epochs, other.pooled_layers) == (5, 8, "")
