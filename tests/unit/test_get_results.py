import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, leave_held_out

import get_results
from derma.tables import read_table

TRUTH = "Id,task_1,task_2\na.jpg,1,0\nb.jpg,0,1\nc.jpg,0,0\nd.jpg,1,0\ne.jpg,0,1\n"
RESULTS = "Id,task_1,task_2\nd.jpg,0.4,0.5\nc.jpg,0.1,0.2\nb.jpg,0.4,0.45\na.jpg,0.9,0.1\ne.jpg,0.2,0.45\n"
OTHER = "a,0.1,0\nb,0.2,0.4\nc,0.3,0.2\nd,0.6,0.1\ne,0.25,0\n"  # as the challenge's entries were submitted


@pytest.fixture
def score(tmp_path, monkeypatch, capsys):
    """Score where melanoma's AUC is 5.5 / 6 and keratosis' 4 / 6; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("ground_truth", TRUTH), ("results", RESULTS), ("other", OTHER)):
        Path(f"{name}.csv").write_text(text)

    def call(*arguments, figures="none"):
        try:
            code = get_results.main([*map(str, arguments), "--figures", str(figures)])
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return call


def run_with_held_out(name, results, seed):
    """Make a run's folder, with 60 out-of-fold predictions."""
    leave_held_out(Path(name), seed)
    for file, text in (("ground_truth", TRUTH), ("results", results)):
        Path(name, f"{file}.csv").write_text(text)
    return Path(name, "results.csv")


def test_text_figures_warnings_comparison_and_json(score):
    code, out, err = score("results.csv", "0.4", figures="deep/er")
    assert code == 0 and out.startswith("Category 1 Score: 0.917\nCategory 2 Score: 0.667\nCategory 3 Score: 0.792\n")
    assert "\nthreshold 0.4      1.000 [0.342, 1.000]  0.667 [0.208, 0.939]" in out  # sensitivity 2/2, specificity 2/3
    assert "2 melanomas among 5 images: too few" in err and len(list(Path("deep/er").iterdir())) == 3
    Path("ground_truth.csv").rename("truth.csv")
    Path("worse.csv").write_text(RESULTS.replace("a.jpg,0.9", "a.jpg,0.3"))  # loses one pair of the six
    call = ("results.csv", "--truth", "truth.csv", "--compare", "worse.csv")
    assert "1 melanoma               +0.167 [" in score(*call)[1]
    result = json.loads(score(*call, "--json")[1])
    assert result["areas"]["1"]["value"] == pytest.approx(5.5 / 6) and result["points"][0]["matrix"] == [[3, 0], [1, 1]]
    assert result["comparison"]["2"]["p"] == 1 and result["ranks"] == {"1": 1, "2": 22, "3": 18}
    official = (ROOT / "docs" / "official" / "results.csv", "--truth", ROOT / "ground_truth.csv")
    lines = score(*official)[1].splitlines()
    assert [line[-5:] for line in lines[:3]] == ["0.824", "0.941", "0.882"]


def test_ensemble_averages_what_is_held_out_too(score):
    """What --out writes is what was scored, to the last digit."""
    files = [run_with_held_out("a", RESULTS, 0), run_with_held_out("b", OTHER, 1)]
    code, out, _ = score("0.4", "--ensemble", *files, "--out", "m/results.csv")
    assert "Written to m: results.csv, ground_truth.csv, held_out.csv\n" in out
    assert code == 0 and "\nmean of probabilities  1.000" in out and "\na/results.csv          0.917" in out
    assert read_table("m/results.csv").values.loc["a"].tolist() == [0.5, 0.05]
    parts = [read_table(file.with_name("held_out.csv")).values for file in files]
    assert np.array_equal(read_table("m/held_out.csv").values, (parts[0] + parts[1]) / 2)
    assert "d.jpg,1,0" in Path("m/ground_truth.csv").read_text()
    again = score("m/results.csv", "0.4")[1]  # a single file with held_out.csv in its folder
    assert out[out.index("\nmelanoma at") : out.index("\nHeld out: mean AUC 0.9")] in again
    found = json.loads(score("m/results.csv", "--json")[1])["out_of_fold"]
    assert found["images"] == 60 and f"temperature {found['calibrator']['temperature']:.3f}" in again
    assert (
        f"Category 3 Score: {found['area']['value']:.3f}" in score("m/held_out.csv", "--compare", "a/held_out.csv")[1]
    )
    assert "would overwrite a/held_out.csv" in score("--ensemble", *files, "--out", "a/mean.csv")[2]
    assert "there is none in the folder of other.csv;" in score("--ensemble", files[0], "other.csv")[2]
    assert "two of the files share a folder" in score("--ensemble", files[0], "a/ground_truth.csv")[2]
    score("--ensemble", files[0], *files, "--out", "twice/results.csv")
    assert np.allclose(read_table("twice/held_out.csv").values, (2 * parts[0] + parts[1]) / 3, rtol=1e-12)
    assert "b/held_out.csv: not of these" in score("--ensemble", files[0], "other.csv", "--out", "b/mean.csv")[2]
    Path("m/ground_truth.csv").write_text(Path("m/ground_truth.csv").read_text().replace("d.jpg,1,0", "d.jpg,0,0"))
    assert "m/ground_truth.csv: not the truth" in score("--ensemble", *files, "--out", "m/results.csv")[2]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("scored", "lost", "name"), [("1", "2", "seborrheic keratosis"), ("2", "1", "melanoma")])
def test_a_truth_without_a_class_is_scored_as_far_as_it_goes(score, scored, lost, name):
    """Issue 22: the other category is as with all classes; what is not defined is said once, and null in JSON."""
    Path("truth.csv").write_text(TRUTH.replace(",1,0" if lost == "1" else ",0,1", ",0,0"))
    runs = run_with_held_out("a", RESULTS, 0), run_with_held_out("b", OTHER, 1)
    call = ("--truth", "truth.csv", "--compare", "other.csv", "--ensemble", *runs)
    code, out, err = score(*call, figures="f")
    lines = [f"Category {each} Score: not defined (no {name} among 5 images)\n" for each in (lost, "3")]
    assert code == 0 and all(line in out for line in lines) and err.count("too few") == 1
    assert out.count(f"\n{scored} ") == 4 and f"\n{lost} " not in out and "\n3 " not in out and "nan" not in out
    assert out.count(" -\n") == 4 and len(list(Path("f").iterdir())) == (3 if scored == "1" else 2)
    found, full = (json.loads(score(*each, "--json")[1]) for each in (call, call[2:]))
    for name in ("areas", "average_precision", "areas_above_80", "calibration", "comparison", "before", "after"):
        measure, same = (each.get(name) or each["out_of_fold"][name] for each in (found, full))
        assert measure[lost] is measure.get("3") is None and measure[scored] == same[scored], name
    assert found["points"] == (full["points"] if scored == "1" else [])


def test_scores_that_are_no_probabilities(score):
    """Only what depends on their order is given, and it is that of probabilities in this order."""
    Path("logits.csv").write_text(RESULTS.replace("0.4,", "-1,").replace("0.1,0.2", "-7.5,-30").replace("0.2,", "-2,"))
    assert "look like logits: write their softmax, or score the AUC alone with --scores" in score("logits.csv")[2]
    found, given = (json.loads(score(*call, "--json")[1]) for call in (("logits.csv", "--scores"), ("results.csv",)))
    same = ("areas", "bootstrapped", "ranks", "average_precision", "areas_above_80")
    assert all(found[name] == given[name] for name in same) and (found["points"], found["calibration"]) == ([], {})
    code, out, _ = score("logits.csv", "--scores", "--compare", "logits.csv", figures="f")
    assert code == 0 and "melanoma at" not in out and [each.name for each in Path("f").iterdir()] == ["roc.png"]


def test_errors_are_one_sentence_and_exit_code_2(score):
    Path("bad.csv").write_text(RESULTS + "f.jpg,maybe,0.1\n")
    Path("taken").write_text("")
    Path("nevi").write_text(TRUTH.replace("1", "0"))
    calls = [
        [], [""], ["/"], ["nowhere/results.csv"], ["results.csv", "1.5"], ["results.csv", "x"], ["bad.csv"],
        ["results.csv", "--ensemble", "results.csv"],
        ["results.csv", "--out", "x.csv"], ["--scores", "--ensemble", "results.csv"], ["results.csv", "0", "--scores"],
        ["results.csv", "--truth", "nevi"], ["--ensemble", "bad.csv"], ["results.csv", "--compare", "bad.csv"],
        *(["--ensemble", "results.csv", "--out", out] for out in (".", "", "./results.csv", "new/held_out.csv")),
    ]  # fmt: skip
    for code, out, err in (score(*call) for call in calls):
        assert (code, out, err.count("\n")) == (2, "", 1), err
    code, out, err = score("results.csv", "--json", figures="taken")
    assert code == 2 and json.loads(out)["figures"] == [] and err.splitlines()[-1].startswith("Cannot write")


def test_torch_is_not_imported(score):
    command = [sys.executable, "-X", "importtime", ROOT / "get_results.py", "--figures", "none", "results.csv"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "| torch\n" not in done.stderr  # a score takes a second
