from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from derma.execute import TalkingClient, main

STORY = """
from derma.commands import progress
for number in (bar := progress(range(3))):
    bar.write(f"line {number}")
print("first ", end="", flush=True)
print("second")
open("made_here", "w").close()
"""


def run(file: Path, output: Path, *cells: str) -> int:
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in cells]), file)
    return main([str(file), str(output)])


def test_in_place_with_lines_and_without_progress_bars(tmp_path, monkeypatch, capfd):
    story = tmp_path / "story.ipynb"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert run(story, story, STORY, "print('end')\n1 + 1") == 0
    lines = ["line 0", "line 1", "line 2", "first second"]
    assert capfd.readouterr().out.splitlines() == [*lines, "end"]
    first, second = nbformat.read(story, as_version=4).cells
    assert first.outputs[0].text.splitlines() == lines and second.outputs[1].data["text/plain"] == "2"
    assert {path.name for path in tmp_path.iterdir()} == {"made_here", "story.ipynb"}  # in its own folder


def test_a_log_says_something_once_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    client, shown = TalkingClient(new_notebook()), ""
    for now[0] in range(200):
        shown += client.for_log(f"\r{now[0]} of 200     ") + client.for_log("\r")
    assert shown == "55 of 200\n110 of 200\n165 of 200\n"
    assert client.for_log("   \rend") == "" and client.for_log("ed\nWindows\r\nlast\n") == "ended\nWindows\nlast\n"


def test_a_failing_cell_is_one_sentence_and_keeps_the_old_output(tmp_path, capfd):
    story, output, failed = (tmp_path / f"{name}.ipynb" for name in ("story", "out", "out.failed"))
    output.write_text("old")
    assert run(story, output, "print('so far')", "raise ValueError('no data; add some.')") == 2
    expected = f"{story}: ValueError: no data; add some.\nWhat was executed is in {failed}\n"
    assert capfd.readouterr().err.endswith(expected) and output.read_text() == "old"
    assert nbformat.read(failed, as_version=4).cells[0].outputs[0].text == "so far\n"
    assert run(story, output, "import os\nos._exit(1)") == 2 and "the kernel died" in capfd.readouterr().err


def test_what_is_not_a_notebook(tmp_path, capfd):
    story = tmp_path / "story.ipynb"
    for content in (b"", b"no", b"[]", b"{}", b"\xff\xfe\x00"):
        story.write_bytes(content)
        assert main([str(story), "out.ipynb"]) == 2
        assert capfd.readouterr().err == f"{story}: not a notebook; name an .ipynb file.\n"
    assert main(["missing.ipynb", "out.ipynb"]) == 2 and "missing.ipynb: No such file" in capfd.readouterr().err
    assert run(story, tmp_path, "open('ran', 'w')") == 2 and not (tmp_path / "ran").exists()
