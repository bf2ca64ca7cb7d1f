"""The notebooks as a user runs them: their code from top to bottom, on a tiny sample, in a folder of its own."""

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

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from derma.predict import TrainedRun, find_images
from derma.scoring import score
from derma.tables import join, read_table

CLASSIFICATION, STRUCTURE = "skin_lesion_classification.ipynb", "dataset_structure_visualization.ipynb"
QUICK = {"model": "test_convnext", "weights": "none", "batch_size": 8, "epochs": 2, "precision": "no",
         "drop_leaks": "false"}  # fmt: skip
QUICKS = {
    CLASSIFICATION: QUICK | {"image_size": 32, "workers": 0, "lr_head": 1e-2, "lr_backbone": 1e-3},
    STRUCTURE: QUICK | {"image_size": 64, "code": 12},
}

# A process that has imported everything and forks for each run, which spares most of a run's time.
RUNNER = """
import json, os, sys, nbformat, matplotlib
matplotlib.use("agg")
import openTSNE, skimage.metrics, sklearn.manifold
from derma import attributes, classifier, explorer, features, figures, gradcam, leaks, run, sample, tables
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        cells = [cell.source for cell in nbformat.read(job["notebook"], 4).cells if cell.cell_type == "code"]
        os.chdir(job["folder"])
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(job["settings"])
        exec(compile("\\n\\n".join(cells), "notebook", "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    print(child, flush=True)
    print("end", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def variables(data, notebook, settings):
    settings = QUICKS[notebook] | {"data": data, "results": "run"} | settings
    return {f"DERMA_{name.upper()}": str(value) for name, value in settings.items()}


def environment(**changes):
    """The caller's environment without settings of his own, for one thread."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DERMA_")}
    return own | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"} | changes


@pytest.fixture(scope="session")
def runner():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    process = subprocess.Popen([sys.executable, "-c", RUNNER], env=environment(), **pipes)
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()


def wait_for_checkpoints(folder, child, count, pause):
    """Wait until a run has saved this many new states, or has ended; then for some seconds more."""
    before, new = set(folder.rglob("*checkpoint*.safetensors")), set()
    with suppress(ProcessLookupError):
        while len(new) < count:  # collected, since a training keeps no more than two
            new |= set(folder.rglob("*checkpoint*.safetensors")) - before
            os.kill(child, 0)
            time.sleep(0.005)
    time.sleep(pause)


@pytest.fixture
def run(runner, drawn, tmp_path):
    """Return a function that runs a notebook: it returns the folder, all that was printed there, the exit code."""

    def run_code(folder="one", data=drawn, notebook=CLASSIFICATION, kill_after=None, **settings):
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        job = {"folder": str(root), "notebook": str(ROOT / notebook), "settings": variables(data, notebook, settings)}
        runner.stdin.write(json.dumps(job) + "\n")
        child = int(runner.stdout.readline())
        if kill_after is not None:
            wait_for_checkpoints(root, child, *kill_after)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        code = int(runner.stdout.readline().split()[1])
        text = (root / "log").read_text()
        assert code in ((0, -signal.SIGKILL) if kill_after else (0,)), text
        return root, text, code

    return run_code


@pytest.mark.parametrize("frozen", ["false", "true"])
def test_five_folds_learn_predict_each_image_once_and_leave_a_run(run, drawn, frozen):
    root, text, _ = run(folds=5, frozen=frozen, epochs=4)
    history = pd.read_csv(root / "run" / "history.csv")
    if frozen == "true":  # no epochs: the heads are fitted at once
        assert history.empty
    else:
        losses = history.groupby("fold")["train_loss"]
        assert len(losses) == 5 and (losses.last() < losses.first()).all()
    held_out = pd.read_csv(root / "run" / "held_out.csv")
    images = [*drawn.glob("train/*/*"), *drawn.glob("valid/*/*")]
    assert sorted(Path(each).name for each in held_out["Id"]) == sorted(file.name for file in images)
    joined = join(read_table(root / "run" / "results.csv"), read_table(root / "run" / "ground_truth.csv", truth=True))
    assert len(joined) == 11 and f"Category 3 Score: {score(joined)[2]:.3f}" in text
    metrics = json.loads((root / "run" / "metrics.json").read_text())
    assert metrics["areas"]["3"]["value"] == score(joined)[2] and metrics["settings"]["folds"] == 5
    assert len(list(root.glob("models/features/*"))) == (2 if frozen == "true" else 0)
    assert len(list((root / "run").glob("fold-?.safetensors"))) == 5
    assert "To score it: python get_results.py run/results.csv" in text and not (root / "results.csv").exists()

    # derma.predict repeats results.csv to the last digit, with as many threads as the notebook had.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _, probabilities, _ = TrainedRun(root / "run").predict_files(find_images([drawn / "test"])[0])
    torch.set_num_threads(threads)
    results = read_table(root / "run" / "results.csv").values
    assert (results == probabilities[:, [0, 2]]).all(axis=None)


def test_held_out_never_reads_the_labels_of_the_test_split(run, data_folder):
    held_out, _, _ = run("held_out", data=data_folder, evaluate="held_out", frozen="true")
    written = {name: (held_out / "run" / name).read_bytes() for name in ("results.csv", "metrics.json")}
    assert b"/test/" not in written["results.csv"] and len(list(held_out.glob("models/features/*"))) == 1
    (data_folder / "test" / "nevus").rename(data_folder / "test" / "swapped")
    (data_folder / "test" / "melanoma").rename(data_folder / "test" / "nevus")
    (data_folder / "test" / "swapped").rename(data_folder / "test" / "melanoma")
    again, _, _ = run("again", data=data_folder, evaluate="held_out", frozen="true")
    assert written == {name: (again / "run" / name).read_bytes() for name in written}
    run("again", data=data_folder, evaluate="test", frozen="true")
    assert b"/test/" in (again / "run" / "results.csv").read_bytes()


def test_killed_ten_times_and_resumed_it_ends_the_same(run):
    """SIGKILL at random moments: predictions and history are those of the run that nobody disturbed."""
    settings = {"folds": 2, "epochs": 16}
    unbroken, _, _ = run("unbroken", **settings)
    chance = random.Random(0)
    for _ in range(10):
        moment = chance.choice((0, 1, 2)), chance.uniform(0, 0.05)
        assert run("broken", kill_after=moment, **settings)[2] == -signal.SIGKILL
    broken, text, _ = run("broken", **settings)
    for name in ("results.csv", "held_out.csv"):
        assert (broken / "run" / name).read_bytes() == (unbroken / "run" / name).read_bytes()
    columns = ["fold", "epoch", "train_loss", "valid_loss", "valid_auc", "lr"]
    histories = [pd.read_csv(root / "run" / "history.csv")[columns] for root in (broken, unbroken)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert len(set(re.findall(r"resumed after epoch (\d)", text))) >= 3
    assert not list((broken / "run").glob("*checkpoint*"))


def test_two_processes_train_as_one(run, drawn, tmp_path):
    """Run as docs/hardware.md says."""
    (one, _, _), two = run("one"), tmp_path / "two"
    two.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = variables(drawn, CLASSIFICATION, {"batch_size": 4})
    command = ["torchrun", "--standalone", "--no-python", "--nproc-per-node", "2", "ipython", ROOT / CLASSIFICATION]
    done = subprocess.run(command, cwd=two, env=environment(PATH=path, IPYTHONDIR=str(two), **settings),
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [pd.read_csv(root / "run" / "history.csv")["train_loss"] for root in (one, two)]
    assert np.allclose(*losses, rtol=0, atol=1e-5)
    for name in ("results.csv", "held_out.csv"):  # 11 and 7 images: none twice, in the same order
        tables = [pd.read_csv(root / "run" / name) for root in (one, two)]
        assert tables[0]["Id"].tolist() == tables[1]["Id"].tolist()
        assert np.abs(tables[0].iloc[:, 1:] - tables[1].iloc[:, 1:]).to_numpy().max() <= 1e-5


def test_the_data_set_is_mapped_and_a_killed_autoencoder_resumes(run, drawn):
    settings = {"notebook": STRUCTURE, "epochs": 4, "classifier": "run"}
    run("mapped")  # leaves a classifier in run
    root, text, _ = run("mapped", **settings)
    folder = root / "models" / "tiny-autoencoder"
    assert {"explorer.html", "history.csv", "metrics.json"} < {file.name for file in folder.iterdir()}
    encodings = np.load(folder / "encodings.npz")
    assert encodings["codes"].shape == (42, 12) and sorted(set(encodings["splits"])) == ["test", "train", "valid"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["separation"]) == {"principal components", "autoencoder", "trained"}
    assert metrics["test"]["autoencoder"]["MSE"] < 1.2 * metrics["test"]["12 components"]["MSE"]
    shutil.rmtree(folder)
    for name in ("melanoma", "nevus"):  # another clinic's images: no splits, and no keratosis
        for file in drawn.glob(f"*/{name}/*"):
            (root / "clinic" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / "clinic" / name)
    run("mapped", data="clinic", **settings | {"epochs": 1})
    assert "clinic" in (root / "models" / "clinic-autoencoder" / "explorer.html").read_text()
    run("mapped", kill_after=(2, 0), **settings)
    _, text, _ = run("mapped", **settings)
    assert "autoencoder: resumed after epoch" in text
    assert (np.load(folder / "encodings.npz")["codes"] == encodings["codes"]).all()
