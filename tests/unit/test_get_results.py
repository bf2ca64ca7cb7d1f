import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import get_results
from derma.tables import read_table

TRUTH = "Id,task_1,task_2\na.jpg,1,0\nb.jpg,0,1\nc.jpg,0,0\nd.jpg,1,0\ne.jpg,0,1\n"
RESULTS = "Id,task_1,task_2\nd.jpg,0.4,0.5\nc.jpg,0.1,0.2\nb.jpg,0.4,0.45\na.jpg,0.9,0.1\ne.jpg,0.2,0.45\n"
FIGURES = ("roc.png", "reliability.png", "melanoma_confusion.png")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two good files in the current folder: melanoma's AUC is 5.5 / 6, keratosis' 4 / 6, as counted by hand."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ground_truth.csv").write_text(TRUTH)
    (tmp_path / "results.csv").write_text(RESULTS)
    return tmp_path


def test_the_old_call(files, capsys):
    assert get_results.main(["results.csv", "0.4"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:3] == ["Category 1 Score: 0.917", "Category 2 Score: 0.667", "Category 3 Score: 0.792"]
    assert "\n0.4          1.000 [0.342, 1.000]  0.667 [0.208, 0.939]" in out  # sensitivity 2/2, specificity 2/3
    for name in FIGURES:
        assert np.asarray(Image.open(files / "images" / "scores" / name).convert("L")).std() > 10  # something is drawn


def test_default_threshold_and_other_files(files, capsys):
    (files / "ground_truth.csv").rename(files / "truth.csv")
    assert get_results.main(["results.csv", "--truth", "truth.csv", "--figures", "elsewhere"]) == 0
    assert "\n0.5          0.500 [0.095, 0.905]  1.000 [0.439, 1.000]" in capsys.readouterr().out
    assert (files / "elsewhere" / "roc.png").is_file()
    assert get_results.main(["results.csv", "--truth", "truth.csv", "--figures", "none"]) == 0
    assert not (files / "images").exists() and not (files / "none").exists()


def test_json_says_the_same(files, capsys):
    assert get_results.main(["results.csv", "--json", "--figures", "none", "--compare", "results.csv"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["areas"]["1"]["value"] == pytest.approx(5.5 / 6)
    assert result["points"][0]["matrix"] == [[3, 0], [1, 1]]
    assert result["comparison"]["3"]["p"] == 1
    assert result["ranks"] == {"1": 1, "2": 22, "3": 18}
    assert len(result["warnings"]) == 2  # two melanomas, two keratoses: too few


def test_compare(files, capsys):
    (files / "other.csv").write_text(RESULTS.replace("a.jpg,0.9", "a.jpg,0.3"))
    assert get_results.main(["results.csv", "--compare", "other.csv", "--figures", "none"]) == 0
    out = capsys.readouterr().out
    # a.jpg falls below b.jpg: one pair of the six is lost.
    assert "1 melanoma               +0.167 [" in out
    assert "2 seborrheic keratosis   +0.000 [+0.000, +0.000]     1 (DeLong)" in out


def test_ensemble(files, capsys):
    (files / "other.csv").write_text(
        "image_id,melanoma,seborrheic_keratosis\na,0.1,0\nb,0.2,0.4\nc,0.3,0.2\nd,0.6,0.1\ne,0.25,0\n"
    )
    arguments = ["--ensemble", "results.csv", "other.csv", "--out", "mean.csv", "--figures", "none"]
    assert get_results.main(arguments) == 0
    out = capsys.readouterr().out
    assert "mean of probabilities  1.000" in out and "results.csv            0.917" in out and "mean of ranks" in out
    mean = read_table(files / "mean.csv").values
    assert pd.read_csv("mean.csv")["Id"].tolist()[0] == "a.jpg"
    assert mean.loc["a"].tolist() == [0.5, 0.05] and mean.loc["d"].tolist() == [0.5, 0.3]
    assert get_results.main([*arguments, "--by-rank"]) == 0
    ranks = read_table(files / "mean.csv").values
    assert ranks.loc["d", "task_1"] == pytest.approx((3 + 4.5) / 10, abs=1e-6)  # shares ranks 3 and 4 of 5; then is 5th
    assert get_results.main(["mean.csv", "--figures", "none"]) == 0


def test_the_challenges_own_files(files, capsys):
    (files / "truth.csv").write_text(
        "image_id,melanoma,seborrheic_keratosis\na,1.0,0.0\nb,0.0,1.0\nc,0.0,0.0\nd,1.0,0.0\ne,0.0,1.0\n"
    )
    (files / "entry.csv").write_text("a,0.9,0.1\nb,0.4,0.45\nc,0.1,0.2\nd,0.4,0.5\ne,0.2,0.45\n")
    assert get_results.main(["entry.csv", "--truth", "truth.csv", "--figures", "none"]) == 0
    assert capsys.readouterr().out.startswith("Category 1 Score: 0.917\nCategory 2 Score: 0.667\n")


def test_warnings_are_loud_and_scoring_goes_on(files, capsys):
    (files / "results.csv").write_text("a,1,10\nb,0,45\nc,0,20\nd,1,50\ne,0,60\n")
    assert get_results.main(["results.csv", "--figures", "none"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("WARNING: results.csv") == 2  # and two of few pictures
    assert "percent" in captured.err and "hard labels" in captured.err
    assert captured.out.startswith("Category 1 Score: 1.000\n")


def test_a_bad_file_is_one_sentence_and_exit_code_2(files, capsys):
    with (files / "results.csv").open("a") as file:
        file.write("f.jpg,maybe,0.1\n")
    for arguments in (["results.csv"], ["--ensemble", "results.csv"], ["ground_truth.csv", "--compare", "results.csv"]):
        assert get_results.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.endswith(
            "results.csv, row 7: task_1 'maybe' is not a finite number; give one from 0 to 1.\n"
        )
        assert captured.err.count("\n") == 1
    assert not (files / "images").exists()


def test_what_cannot_be_written(files, capsys):
    (files / "taken").write_text("")
    assert get_results.main(["results.csv", "--figures", "taken"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("Category 1 Score: 0.917")  # the scores are not lost
    assert captured.err.splitlines()[-1].startswith("Nothing could be written there") and "taken" in captured.err
    assert get_results.main(["--ensemble", "results.csv", "--out", "taken/mean.csv", "--figures", "none"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("Nothing could be written there")


def test_nothing_that_is_read_is_overwritten(files, capsys):
    before = (files / "ground_truth.csv").read_bytes()
    for target in ("ground_truth.csv", "results.csv", "./results.csv"):
        with pytest.raises(SystemExit) as caught:
            get_results.main(["--ensemble", "results.csv", "--out", target])
        assert caught.value.code == 2
        assert "would overwrite" in capsys.readouterr().err
    assert (files / "ground_truth.csv").read_bytes() == before


def test_ensemble_at_a_threshold_and_as_json(files, capsys):
    options = ["--figures", "none", "--json", "--seed", "3", "--resamples", "50"]
    assert get_results.main(["0.4", "--ensemble", "results.csv", "results.csv", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["points"][0]["threshold"] == 0.4
    assert result["parts"]["mean of probabilities"][0] == pytest.approx(5.5 / 6)
    assert result["pictures"] == {"all": 5, "melanoma": 2, "keratosis": 2}


def test_the_truth_beside_the_predictions_comes_first(files, capsys):
    (files / "run").mkdir()
    for name in ("results.csv", "ground_truth.csv"):
        (files / name).rename(files / "run" / name)
    (files / "ground_truth.csv").write_text("Id,task_1,task_2\nother,1,0\n")
    assert get_results.main(["run/results.csv", "--figures", "none"]) == 0


def test_a_reader_that_has_seen_enough(files):
    command = f"{sys.executable} {ROOT / 'get_results.py'} results.csv --figures none | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=files, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == "Category 1 Score: 0.917\n" and "written" not in done.stderr


@pytest.mark.parametrize("name", [".", "/", "nowhere/results.csv", "ground_truth.csv/x"])
def test_odd_paths(files, name, capsys):
    for arguments in ([name], ["--ensemble", name, "results.csv"], ["results.csv", "--compare", name]):
        assert get_results.main([*arguments, "--figures", "none"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_closed_output_and_a_terminal_without_the_names_letters(files):
    (files / "ü.csv").write_text(RESULTS)
    script = f"{sys.executable} {ROOT / 'get_results.py'} --figures none --ensemble ü.csv results.csv"
    for command in (f"{script} >&-", f"PYTHONIOENCODING=ascii {script}"):
        done = subprocess.run(["bash", "-c", command], cwd=files, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_json_keeps_the_scores_when_figures_cannot_be_written(files, capsys):
    (files / "taken").write_text("")
    assert get_results.main(["results.csv", "--json", "--figures", "taken"]) == 2
    result = json.loads(capsys.readouterr().out)
    assert result["areas"]["1"]["value"] == pytest.approx(5.5 / 6) and result["figures"] == []


def test_few_pictures_of_a_class_are_warned_of(files, capsys):
    assert get_results.main(["results.csv", "--figures", "none"]) == 0
    assert "2 melanomas among 5 pictures: too few" in capsys.readouterr().err


def test_show_opens_windows(files, monkeypatch):
    shown = []
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: shown.append(True))
    assert get_results.main(["results.csv", "--show"]) == 0 and shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ensemble", "results.csv", "--out", "."],
        ["--ensemble", "results.csv", "--out", ""],
        ["results.csv", "--seed", "-1"],
        ["results.csv", "--resamples", "99999999999999999999"],
        ["results.csv", "--show", "--figures", "none"],
        ["results.csv", "1.5"], ["results.csv", "half"], ["results.csv", "nan"], [], ["results.csv", "--out", "x.csv"],
        ["results.csv", "--by-rank"], ["results.csv", "--ensemble", "results.csv"], ["results.csv", "--resamples", "0"],
    ],
)  # fmt: skip
def test_bad_arguments(files, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        get_results.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a.jpg", "b", "c", "d", "e", ""]),
        st.sampled_from(["0", "1", "0.5", "60", "-1", "nan", "x", ""]) | st.floats(0, 1).map(str),
        st.sampled_from(["0", "1", "0.25", "1e-300", "1e300"]) | st.floats(0, 1).map(str),
    ).map(",".join),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(header=st.sampled_from(["Id,task_1,task_2", "image_id,melanoma,seborrheic_keratosis", "", "x,y,z"]), rows=ROWS)
def test_any_file_ends_in_0_or_in_2_with_one_sentence(tmp_path_factory, header, rows):
    folder = tmp_path_factory.getbasetemp()
    (folder / "truth.csv").write_text(TRUTH)
    (folder / "any.csv").write_text("\n".join([header, *rows]))
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(sys, "stderr", type("Stderr", (), {"write": said.append, "flush": lambda self: None})())
        options = ["--truth", str(folder / "truth.csv"), "--figures", "none", "--resamples", "20"]
        code = get_results.main([str(folder / "any.csv"), *options])
    if code == 2:
        assert "".join(said).count("\n") == 1
    else:
        assert code == 0 and all("WARNING" in line for line in "".join(said).splitlines())


def test_torch_is_not_imported(files):
    code = "import sys, get_results; get_results.main(['results.csv']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=files, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_published_results_can_be_scored(published, capsys):
    assert get_results.main([str(published / "results.csv"), "--figures", str(published)]) == 0
    out = capsys.readouterr().out
    assert "\n600 pictures: 117 melanomas, 90 seborrheic keratoses, 393 nevi." in out
    assert float(out.splitlines()[2].split()[-1]) >= 0.83
