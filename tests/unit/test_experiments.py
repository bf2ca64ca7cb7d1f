"""docs/experiments: rows belong to their commands, the table to the rows, and intervals hold what they should."""

import json
from pathlib import Path

import experiments
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, leave_held_out

from derma import scoring, tables
from derma.settings import settings_in


def test_each_experiment_has_settings_of_the_notebook_and_an_earlier_one_to_compare_with():
    names = list(experiments.EXPERIMENTS)
    for place, (name, experiment) in enumerate(experiments.EXPERIMENTS.items()):
        earlier = ["", *names[:place]]
        assert experiment.against in earlier and set(getattr(experiment, "members", [])) <= set(earlier), name
        if isinstance(experiment, experiments.Experiment):
            variables = experiments.variables(name, "weights")
            assert {key[len("DERMA_") :].lower() for key in variables} <= settings_in(ROOT / experiments.NOTEBOOK), name
    weights = experiments.variables("frozen DenseNet169", "weights")["DERMA_WEIGHTS"]
    assert weights == str(Path("weights/densenet169.safetensors").absolute())


def test_the_published_rows_are_those_of_their_commands_and_of_the_page():
    page = experiments.PAGE.read_text(encoding="utf-8")
    assert f"<!-- table -->\n{experiments.page_table()}\n<!-- /table -->" in page
    rows = pd.read_csv(experiments.TABLE, dtype={"commit": str}).set_index("experiment", drop=False)
    assert rows.index.is_unique
    for row in rows.itertuples():
        assert np.mean([*map(float, row.cv_auc_3_by_seed.split())]) == pytest.approx(row.cv_auc_3, abs=1e-4)
        assert ("DERMA_EVALUATE=held_out" in row.command or "held_out.csv" in row.command) and "dirty" not in row.commit
        if pd.isna(row.last_commit):
            assert row.command == experiments.command(row.experiment)
            if not np.isnan(row.difference_3):  # older rows are compared with what the other row was then
                assert row.difference_3 == pytest.approx(row.cv_auc_3 - rows.loc[row.against, "cv_auc_3"], abs=3e-4)


def test_the_published_row_follows_from_the_held_out_predictions():
    held_out = tables.read_table(ROOT / "docs" / "held_out.csv")
    found, rows = scoring.score(tables.join(held_out, tables.truth_from_ids(held_out))), pd.read_csv(experiments.TABLE)
    close = np.isclose(rows[["cv_auc_1", "cv_auc_2"]], found[:2], rtol=0, atol=6e-5).all(axis=1)
    (chosen,) = rows[close].itertuples()
    assert chosen.cv_auc_3 == rows["cv_auc_3"].max()  # nothing else decides
    truth = tables.read_table(ROOT / "ground_truth.csv", truth=True)
    report = scoring.report(tables.join(tables.read_table(ROOT / "results.csv"), truth))
    assert chosen.test_auc_3 == round(report.areas[3].value, 4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The tables and runs in a folder of the test's own, with one row of a deleted option."""
    for name, place in {"TABLE": "experiments.csv", "PAGE": "experiments.md", "RUNS": "runs"}.items():
        monkeypatch.setattr(experiments, name, tmp_path / place)
    pd.read_csv(ROOT / "docs" / "experiments.csv", dtype=str).head(1).to_csv(tmp_path / "experiments.csv", index=False)
    (tmp_path / "experiments.md").write_text("before\n<!-- table -->\n<!-- /table -->\nafter")
    return tmp_path


def leave(name, strength, seed=0):
    """Write what an experiment's run leaves."""
    run = experiments.folder_of(name)
    leave_held_out(run, seed, strength, (40, 120, 30))
    record = {"command": experiments.command(name), "commit": "1234567", "date": "2026-01-01", "minutes": 1.0}
    (run / "experiment.json").write_text(json.dumps(record))


def test_differences_have_their_sign_and_equal_ones_hold_zero(folder):
    leave("frozen ResNet50", 1.0)
    leave("frozen DenseNet169", 2.0)
    leave("frozen EfficientNetV2-B0", 1.0, seed=3)
    before = experiments.TABLE.read_text()
    experiments.write_tables()
    assert experiments.TABLE.read_text().startswith(before)  # another machine's row stays
    rows = pd.read_csv(experiments.TABLE).set_index("experiment")
    better, same = rows.loc["frozen DenseNet169"], rows.loc["frozen EfficientNetV2-B0"]
    assert 0 < better["difference_3_low"] < better["difference_3"] < better["difference_3_high"]
    assert same["difference_3_low"] < 0 < same["difference_3_high"]
    assert better["difference_3"] == pytest.approx(better.cv_auc_3 - rows.cv_auc_3["frozen ResNet50"], abs=2e-4)
    assert (better["seeds"], better["minutes"], better["commit"]) == (1, 1.0, "1234567")
    before, after = experiments.PAGE.read_text().split(experiments.page_table())
    assert (before, after) == ("before\n<!-- table -->\n", "\n<!-- /table -->\nafter")


def test_only_runs_of_todays_settings_count_and_are_not_repeated(folder, monkeypatch):
    leave(experiments.TUNED, 1.0)
    called, done = [], experiments.subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(experiments.subprocess, "run", lambda *_, env, **__: called.append(env) or done)
    monkeypatch.setenv("DERMA_EPOCHS", "99")  # the reader's own settings do not matter
    experiments.run(experiments.TUNED, None, "abc")
    assert not called
    record = folder / "runs" / "EfficientNetV2-B0-two-stages-192-px" / "experiment.json"
    record.write_text(record.read_text().replace("DERMA_EPOCHS=5", "DERMA_EPOCHS=9"))
    experiments.run(experiments.TUNED, None, "abc")
    own = {key: value for key, value in called[0].items() if key.startswith("DERMA_")}
    assert own == experiments.variables(experiments.TUNED) | {"DERMA_RESULTS": str(record.parent)}
    assert json.loads(record.read_text())["commit"] == "abc"
