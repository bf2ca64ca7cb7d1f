"""The table of experiments: its rows belong to their commands, its intervals hold what they should."""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from sklearn.metrics import roc_auc_score

from derma import scoring, tables
from derma.dataset import CLASSES
from derma.settings import EVERY

sys.path.insert(0, str(ROOT / "benchmarks"))
import experiments


def test_each_experiment_differs_in_one_thing_from_what_it_is_compared_with():
    for name, (settings, against) in experiments.EXPERIMENTS.items():
        assert set(settings) <= EVERY, name
        if against is not None:
            other = experiments.EXPERIMENTS[against].settings
            changed = {key for key in {*settings, *other} if settings.get(key) != other.get(key)}
            heads = set(experiments.HEADS_BESIDE)  # to train heads and to average them is one thing
            changed = changed - heads | {"heads"} if heads <= changed else changed
            follow = {"frozen": {"batch_size", "epochs", "seeds"}, "tuned_from": {"precompute"}}
            assert len(changed - set().union(*(follow.get(key, set()) for key in changed))) == 1, name


def test_experiments_that_answer_differently_share_their_networks_and_no_others_do():
    networks, name = experiments.networks_of, "tuned DenseNet169"
    beside = [f"{name}, one view", f"{name}, answers at 240 px", f"{name}, answers at 240 px, with heads"]
    assert all(networks(other) == networks(name) for other in beside)
    assert networks("small, eight views") == networks("small")
    others = set(experiments.EXPERIMENTS) - {*beside, "small, eight views"}
    equal = [pair for pair in itertools.combinations(others, 2) if networks(pair[0]) == networks(pair[1])]
    assert not equal  # among them frozen ones with one view and with eight: their heads learn from other features


def test_the_published_rows_are_those_of_their_commands():
    if not experiments.TABLE.exists():
        pytest.skip("no experiment has been published")
    rows = pd.read_csv(experiments.TABLE).set_index("experiment", drop=False)
    for row in rows.itertuples():
        if not np.isnan(row.difference_3):  # also where the other has been made again since
            assert row.difference_3 == pytest.approx(row.cv_auc_3 - rows.loc[row.against, "cv_auc_3"], abs=3e-4)
        assert row.command == experiments.command(row.experiment)
        assert "DERMA_EVALUATE=held_out" in row.command and "dirty" not in row.commit
        assert np.mean([float(value) for value in row.cv_auc_3_by_seed.split()]) == pytest.approx(
            row.cv_auc_3, abs=1e-4
        )


def test_the_readme_and_the_notebook_show_the_rows_on_file():
    if not experiments.TABLE.exists():
        pytest.skip("no experiment has been published")
    readme, notebook = ((ROOT / name).read_text() for name in ("README.md", experiments.NOTEBOOK))
    lines = "\n".join(
        "".join(text) for cell in json.loads(notebook)["cells"] for out in cell.get("outputs", [])
        if "text" in out for text in out["text"]
    )  # fmt: skip
    shown = [line.split() for line in lines.splitlines()]
    rows = pd.read_csv(experiments.TABLE)
    for row in rows.itertuples():
        gain, low, high = row.difference_3, row.difference_3_low, row.difference_3_high
        against = "" if np.isnan(gain) else f"{gain:+.3f} [{low:+.3f}, {high:+.3f}], {row.against}"
        cells = [row.experiment, *(f"{value:.3f}" for value in (row.cv_auc_3, row.cv_auc_1, row.cv_auc_2)), against]
        assert f"| {' | '.join(cells)} |" in readme
        printed = [*row.experiment.split(), *cells[1:4], *("" if pd.isna(row.against) else row.against).split()]
        assert printed + ([] if np.isnan(gain) else [f"{value:+.3f}" for value in (gain, low, high)]) in shown
    table = readme[readme.index("| experiment | mean") :].split("\n\n")[0]
    assert len(table.splitlines()) == 2 + len(rows)


def test_what_is_published_of_the_pictures_held_out_follows_from_their_predictions():
    held = pd.read_csv(ROOT / "held_out.csv")
    joined = tables.join(
        tables.read_table(ROOT / "results.csv"), tables.read_table(ROOT / "ground_truth.csv", truth=True)
    )
    on_test = round(scoring.report(joined).areas[3].value, 4)
    rows = pd.read_csv(experiments.TABLE)
    (chosen,) = rows[rows["test_auc_3"] == on_test].itertuples()
    assert chosen.cv_auc_3 == rows["cv_auc_3"].max()  # nothing else decides
    for label, area in ((CLASSES[0], chosen.cv_auc_1), (CLASSES[2], chosen.cv_auc_2)):
        assert roc_auc_score(held["truth"] == label, held[label]) == pytest.approx(area, abs=6e-5)
    assert len(held) == 2125 and not set(held["Id"]) & set(joined.index)
    threshold = scoring.threshold_for_sensitivity(held["truth"] == CLASSES[0], held[CLASSES[0]], 0.89)
    assert f"held out ({threshold:.3f})" in (ROOT / "README.md").read_text()


def leave(name, strength, seeds=(0, 1, 2)):
    """Put down what an experiment leaves: predictions that are the better the greater the strength."""
    folder = experiments.folder_of(name)
    folder.mkdir(parents=True)
    command = experiments.command(name)
    about = {"date": "2026-01-01", "commit": "abc", "minutes": 1.0, "whole_minutes": 1.0, "command": command}
    (folder / "metrics.json").write_text(json.dumps(about))
    targets = np.repeat([0, 1, 2], [40, 120, 30])
    tables = []
    for seed in seeds:
        logits = strength * np.eye(3)[targets] + np.random.default_rng(seed).normal(size=(len(targets), 3))
        table = pd.DataFrame(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), columns=CLASSES)
        tables.append(
            table.assign(Id=[f"p{i}" for i in range(len(targets))], truth=np.array(CLASSES)[targets], seed=seed)
        )
    pd.concat(tables).to_csv(folder / "held_out.csv", index=False)


def test_differences_have_their_sign_and_equal_ones_hold_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "KEPT", tmp_path)
    monkeypatch.setattr(experiments, "TABLE", tmp_path / "experiments.csv")
    leave("frozen", 1.0)
    leave("frozen, two layers", 2.0)
    leave("frozen, pooled layers", 1.0, seeds=(3, 4, 5))
    table = experiments.write_table().set_index("experiment")
    better, same = table.loc["frozen, two layers"], table.loc["frozen, pooled layers"]
    assert 0 < better["difference_3_low"] < better["difference_3"] < better["difference_3_high"]
    assert same["difference_3_low"] < 0 < same["difference_3_high"]
    assert better["difference_3"] == pytest.approx(better["cv_auc_3"] - table.loc["frozen", "cv_auc_3"], abs=2e-4)
    assert list(pd.read_csv(tmp_path / "experiments.csv")["experiment"]) == list(table.index)
    assert table["seeds"].tolist() == [3, 3, 3]


def test_the_chosen_one_alone_has_scores_on_the_test_split(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "KEPT", tmp_path)
    monkeypatch.setattr(experiments, "TABLE", tmp_path / "experiments.csv")
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    evaluated = []

    def execute(own, folder):
        """Leave what the notebook would."""
        evaluated.append(own["DERMA_EVALUATE"])
        folder.mkdir(exist_ok=True)
        if own["DERMA_EVALUATE"] == "test":
            for file in ("results.csv", "ground_truth.csv"):
                shutil.copy(ROOT / file, folder)
        for file in ("held_out.csv", "metrics.json"):
            shutil.copy(experiments.folder_of("frozen") / file, tmp_path / "models" / "isic2017")
        for file in ("history.csv", "checkpoint-0-abc-00001.safetensors"):
            (tmp_path / "models" / "isic2017" / file).touch()

    monkeypatch.setattr(experiments, "execute", execute)
    monkeypatch.setattr(experiments, "current_commit", lambda: "abc")
    (tmp_path / "models" / "isic2017").mkdir(parents=True)
    leave("frozen", 1.0)
    experiments.folder_of("tuned DenseNet169").mkdir()
    experiments.run("tuned DenseNet169", "data/isic2017", None, test=True)
    assert evaluated == ["held_out", "test"]
    assert not list((tmp_path / "models" / "isic2017").glob("checkpoint*"))
    experiments.run("tuned DenseNet169, one view", "data/isic2017", None, shared=True, keep=True)
    assert list((tmp_path / "models" / "isic2017").glob("checkpoint*"))  # and what they took counts here too
    about = json.loads((experiments.folder_of("tuned DenseNet169, one view") / "metrics.json").read_text())
    assert about["whole_minutes"] > about["minutes"] == 1.0
    shutil.rmtree(experiments.folder_of("tuned DenseNet169, one view"))
    names = ["tuned DenseNet169", "tuned DenseNet169, one view", "frozen, two layers"]
    kept = []
    with monkeypatch.context() as patch:
        patch.setattr(experiments, "run", lambda name, data, weights, test, shared, keep: kept.append((shared, keep)))
        patch.setattr(sys, "argv", ["experiments.py", "--names", *names])
        experiments.main()
    assert kept == [(False, True), (True, False), (False, False)]
    table = experiments.write_table().set_index("experiment")
    published = tables.join(
        tables.read_table(ROOT / "results.csv"), tables.read_table(ROOT / "ground_truth.csv", truth=True)
    )
    mean = scoring.report(published).areas[3]
    chosen = table.loc["tuned DenseNet169"]
    assert [chosen["test_auc_3"], chosen["test_auc_3_low"]] == pytest.approx([mean.value, mean.low], abs=1e-4)
    assert table.loc["frozen"].filter(like="test_auc").isna().all()
    shutil.rmtree(experiments.folder_of("tuned DenseNet169"))  # on another machine its row stays, and others are new
    assert experiments.write_table().set_index("experiment").loc["tuned DenseNet169", "test_auc_3"] == pytest.approx(
        chosen["test_auc_3"]
    )
    table.assign(command="of settings that it has no more").reset_index().to_csv(experiments.TABLE, index=False)
    assert experiments.write_table()["experiment"].tolist() == ["frozen"]
    about = json.loads((experiments.folder_of("frozen") / "metrics.json").read_text())
    (experiments.folder_of("frozen") / "metrics.json").write_text(json.dumps(about | {"command": "another"}))
    assert not experiments.on_file("frozen")  # what it was made with is not what it is today
    monkeypatch.setattr(sys, "argv", ["experiments.py", "--test"])
    with pytest.raises(SystemExit):
        experiments.main()


def test_a_row_says_whether_its_code_was_committed(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for file in ("experiments.csv", "code.py"):
        (tmp_path / file).touch()
    for step in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *step], check=True)
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    (tmp_path / "experiments.csv").write_text("a new row")
    clean = experiments.current_commit()
    (tmp_path / "code.py").write_text("changed")
    assert len(clean) == 7 and experiments.current_commit() == clean + "-dirty"
