import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import get_results


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two good files in the current folder: melanoma's AUC is 3.5 / 4, keratosis' 2 / 3, as counted by hand."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ground_truth.csv").write_text("Id,task_1,task_2\na.jpg,1,0\nb.jpg,0,1\nc.jpg,0,0\nd.jpg,1,0\n")
    (tmp_path / "results.csv").write_text(
        "Id,task_1,task_2\nd.jpg,0.4,0.5\nc.jpg,0.1,0.2\nb.jpg,0.4,0.45\na.jpg,0.9,0.1\n"
    )
    return tmp_path


def test_scores_and_figures(files, capsys):
    assert get_results.main(["results.csv", "0.4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["Category 1 Score: 0.875", "Category 2 Score: 0.667", "Category 3 Score: 0.771"]
    assert "threshold 0.4: sensitivity 1.000, specificity 0.500, balanced accuracy 0.750 (4 pictures)" in lines[3]
    for name in ("roc.png", "melanoma_confusion.png"):
        assert np.asarray(Image.open(files / "images" / "scores" / name).convert("L")).std() > 10  # something is drawn


def test_default_threshold_and_other_files(files, capsys):
    (files / "ground_truth.csv").rename(files / "truth.csv")
    assert get_results.main(["results.csv", "--truth", "truth.csv", "--figures", "elsewhere"]) == 0
    assert "threshold 0.5: sensitivity 0.500, specificity 1.000" in capsys.readouterr().out
    assert (files / "elsewhere" / "roc.png").is_file()
    assert not (files / "images").exists()


def test_a_bad_file_is_one_sentence_and_exit_code_2(files, capsys):
    with (files / "results.csv").open("a") as file:
        file.write("e.jpg,maybe,0.1\n")
    assert get_results.main(["results.csv"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "results.csv, row 6: task_1 'maybe' should be a probability from 0 to 1.\n"
    assert not (files / "images").exists()


@pytest.mark.parametrize("threshold", ["1.5", "-0.1", "half", "nan"])
def test_bad_threshold(files, threshold, capsys):
    with pytest.raises(SystemExit) as caught:
        get_results.main(["results.csv", threshold])
    assert caught.value.code == 2
    assert "number from 0 to 1" in capsys.readouterr().err or threshold == "-0.1"


def test_torch_is_not_imported(files):
    code = "import sys, get_results; get_results.main(['results.csv']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=files, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_published_results_can_be_scored(tmp_path, capsys):
    for name in ("results.csv", "ground_truth.csv"):
        shutil.copy(ROOT / name, tmp_path)
    truth = str(tmp_path / "ground_truth.csv")
    assert get_results.main([str(tmp_path / "results.csv"), "--truth", truth, "--figures", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "(600 pictures)" in out
    assert float(out.splitlines()[2].split()[-1]) >= 0.83
