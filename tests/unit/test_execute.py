from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from derma.execute import main


@pytest.fixture
def notebook(tmp_path):
    """Return a function that writes a notebook of the given cells and returns its path."""

    def write(*cells: str):
        file = tmp_path / "story.ipynb"
        nbformat.write(new_notebook(cells=[new_code_cell(source) for source in cells]), file)
        return file

    return write


BAR = """
import sys
from pathlib import Path
from tqdm import tqdm
for number in tqdm(range(300), leave=False, mininterval=0, file=sys.stdout):
    if number % 100 == 0:
        tqdm.write(f"line {number}")
Path("made_here").touch()
"""


def test_lines_are_shown_and_kept_and_progress_bars_are_not(notebook, tmp_path, capfd):
    output = tmp_path / "out.ipynb"
    assert main([str(notebook(BAR, "print('end')")), str(output)]) == 0
    assert capfd.readouterr().out == "line 0\nline 100\nline 200\nend\n"
    cells = nbformat.read(output, as_version=4).cells
    assert [cell.execution_count for cell in cells] == [1, 2]
    assert cells[0].outputs[0].text.split("\n") == ["line 0", "line 100", "line 200", ""]
    assert (tmp_path / "made_here").exists()  # ran in the notebook's folder


def test_a_failing_cell_is_one_sentence_and_keeps_the_old_output(notebook, tmp_path, capfd):
    output = tmp_path / "out.ipynb"
    output.write_text("old")
    assert main([str(notebook("print('so far')", "raise ValueError('no data; add some.')")), str(output)]) == 2
    captured = capfd.readouterr()
    sentence, where = captured.err.splitlines()[-2:]
    assert sentence.endswith("story.ipynb: ValueError: no data; add some.")
    assert where.startswith("The notebook as far as it came: ") and Path(where.split(": ")[1]).is_file()
    assert output.read_text() == "old"
    failed = nbformat.read(tmp_path / "out.failed.ipynb", as_version=4)
    assert failed.cells[0].outputs[0].text == "so far\n"


def test_what_is_no_notebook(tmp_path, capfd):
    (tmp_path / "bad.ipynb").write_text("no")
    (tmp_path / "list.ipynb").write_text("[]")
    (tmp_path / "empty.ipynb").write_text("{}")
    (tmp_path / "bytes.ipynb").write_bytes(b"\xff\xfe\x00")
    for name in ("none.ipynb", "bad.ipynb", "list.ipynb", "empty.ipynb", "bytes.ipynb"):
        assert main([str(tmp_path / name), str(tmp_path / "out.ipynb")]) == 2
        error = capfd.readouterr().err
        assert name in error and error.count("\n") == 1


def test_a_line_in_two_messages_is_shown_whole(notebook, tmp_path, capfd):
    file = notebook("import time\nprint('first ', end='', flush=True)\ntime.sleep(0.3)\nprint('second')")
    assert main([str(file), str(tmp_path / "new" / "out.ipynb")]) == 0
    assert capfd.readouterr().out == "first second\n"


def test_an_output_that_is_a_folder_is_noticed_before_the_run(notebook, tmp_path, capfd):
    (tmp_path / "folder").mkdir()
    file = notebook("from pathlib import Path\nPath('ran').touch()")
    assert main([str(file), str(tmp_path / "folder")]) == 2
    assert "folder: is a folder" in capfd.readouterr().err and not (tmp_path / "ran").exists()


def test_a_kernel_that_dies(notebook, tmp_path, capfd):
    assert main([str(notebook("import os\nos._exit(1)")), str(tmp_path / "out.ipynb")]) == 2
    assert "the kernel died" in capfd.readouterr().err


def test_in_place(notebook, tmp_path):
    file = notebook("1 + 1")
    assert main([str(file), str(file)]) == 0
    assert nbformat.read(file, as_version=4).cells[0].outputs[0].data["text/plain"] == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["story.ipynb"]
