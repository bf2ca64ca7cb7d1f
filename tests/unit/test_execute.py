import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from derma.execute import TalkingClient, main


@pytest.fixture
def notebook(tmp_path):
    """Return a function that writes a notebook of the given cells and returns its path."""

    def write(*cells: str):
        file = tmp_path / "story.ipynb"
        nbformat.write(new_notebook(cells=[new_code_cell(source) for source in cells]), file)
        return file

    return write


STORY = """
import time
from pathlib import Path
from derma.commands import progress
for number in (bar := progress(range(300))):
    if number % 100 == 0:
        bar.write(f"line {number}")
print("first ", end="", flush=True)
time.sleep(0.2)
print("second")
Path("made_here").touch()
"""


def test_in_place_with_lines_and_without_progress_bars(notebook, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    file = notebook(STORY, "print('end')\n1 + 1")
    assert main([str(file), str(file)]) == 0
    lines = ["line 0", "line 100", "line 200", "first second"]
    assert capfd.readouterr().out.splitlines() == [*lines, "end"]
    cells = nbformat.read(file, as_version=4).cells
    assert [cell.execution_count for cell in cells] == [1, 2]
    assert cells[0].outputs[0].text.splitlines() == lines and cells[1].outputs[1].data["text/plain"] == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made_here", "story.ipynb"]  # in its own folder


def test_a_log_says_something_once_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    client = TalkingClient(new_notebook())
    shown = []
    for second in range(200):
        now[0] = second
        shown.append(client.for_log(f"\r{second} of 200" + " " * 5) + client.for_log("\r"))
    assert [text for text in shown if text] == ["55 of 200\n", "110 of 200\n", "165 of 200\n"]
    assert client.for_log("   \rend") == "" and client.for_log("ed\nwindows\r\nand \x1b[1mso\n") == (
        "ended\nwindows\nand \x1b[1mso\n"
    )


def test_a_long_line_in_many_pieces_takes_linear_time():
    client = TalkingClient(new_notebook())
    start = time.perf_counter()
    assert not any(client.for_log("x" * 10) for _ in range(300_000))
    assert len(client.for_log("\n")) == 3_000_001 and time.perf_counter() - start < 5


def test_a_failing_cell_is_one_sentence_and_keeps_the_old_output(notebook, tmp_path, capfd):
    output = tmp_path / "out.ipynb"
    output.write_text("old")
    assert main([str(notebook("print('so far')", "raise ValueError('no data; add some.')")), str(output)]) == 2
    sentence, where = capfd.readouterr().err.splitlines()[-2:]
    assert sentence.endswith("story.ipynb: ValueError: no data; add some.")
    assert where == f"What was executed is in {tmp_path / 'out.failed.ipynb'}" and output.read_text() == "old"
    assert nbformat.read(tmp_path / "out.failed.ipynb", as_version=4).cells[0].outputs[0].text == "so far\n"


@pytest.mark.parametrize("content", [None, b"no", b"[]", b"{}", b"\xff\xfe\x00"])
def test_what_is_not_a_notebook(tmp_path, capfd, content):
    if content is not None:
        (tmp_path / "bad.ipynb").write_bytes(content)
    assert main([str(tmp_path / "bad.ipynb"), str(tmp_path / "out.ipynb")]) == 2
    error = capfd.readouterr().err
    assert "bad.ipynb" in error and error.count("\n") == 1


def test_an_output_that_is_a_folder_is_noticed_before_the_run(notebook, tmp_path, capfd):
    (tmp_path / "folder").mkdir()
    file = notebook("from pathlib import Path\nPath('ran').touch()")
    assert main([str(file), str(tmp_path / "folder")]) == 2
    assert "folder: is a folder" in capfd.readouterr().err.lower() and not (tmp_path / "ran").exists()


def test_a_kernel_that_dies(notebook, tmp_path, capfd):
    assert main([str(notebook("import os\nos._exit(1)")), str(tmp_path / "new" / "out.ipynb")]) == 2
    assert "the kernel died" in capfd.readouterr().err
