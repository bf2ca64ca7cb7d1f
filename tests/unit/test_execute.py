import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import ROOT
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
MUCH = """
for _ in range(5_000): print("x" * 200, end="", flush=True)
for number in range(2_000): display(number)
for number in range(2_000): print(f"\\r{number} of 2000", end="", flush=True)
print("\\rend")
"""
LINE = "x" * 1_000_000


def write(file: Path, *cells: str) -> Path:
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in cells]), file)
    return file


def run(file: Path, output: Path, *cells: str) -> int:
    return main([str(write(file, *cells)), str(output)])


def start(folder: Path, *cells: str, **variables: str) -> subprocess.Popen:
    """Start the command on ``story.ipynb`` in a folder, as a user does; it writes ``out.ipynb``."""
    write(folder / "story.ipynb", *cells)
    arguments = [sys.executable, "-m", "derma.execute", "story.ipynb", "out.ipynb"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.Popen(arguments, cwd=folder, env=environment, stdout=-1, stderr=-1, text=True, encoding="utf-8")


def test_in_place_with_lines_and_without_progress_bars(tmp_path, monkeypatch, capfd):
    story = tmp_path / "story.ipynb"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert run(story, story, STORY, "print('end')\n1 + 1") == 0
    lines = ["line 0", "line 1", "line 2", "first second"]
    assert capfd.readouterr().out.splitlines() == [*lines, "end"]
    first, second = nbformat.read(story, as_version=4).cells
    assert first.outputs[0].text.splitlines() == lines and second.outputs[1].data["text/plain"] == "2"
    assert {path.name for path in tmp_path.iterdir()} == {"made_here", "story.ipynb"}  # in its own folder


def test_a_log_says_something_once_a_minute(monkeypatch):
    """Lines that end with a carriage return and a line feed, as those of ``!command``, are shown."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    client, shown = TalkingClient(new_notebook()), ""
    for now[0] in range(200):
        shown += client.for_log(f"\r{now[0]} of 200     ") + client.for_log("\r")
    assert shown == "55 of 200\n110 of 200\n165 of 200\n"
    assert client.for_log("   \rend") == "" and client.for_log("ed\nWindows\r\nlast\n") == "ended\nWindows\nlast\n"


def test_much_output_takes_linear_time_and_none_of_it_is_lost(tmp_path):
    """A line of a megabyte in one piece and in many, many displays, a progress bar; a few seconds."""
    log, _ = start(tmp_path, f"print('x' * {len(LINE)})", MUCH).communicate(timeout=120)
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    assert log == f"{LINE}\nend\n" == "".join(cell.outputs[0].text for cell in cells) and len(cells[1].outputs) == 2001


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_and_keeps_what_was_done(tmp_path, number):
    process = start(tmp_path, "import os\nprint(os.getpid())", "import time\nprint('begun')\ntime.sleep(60)")
    kernel = int(process.stdout.readline())
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    problems = f"What was executed is in out.failed.ipynb\nstory.ipynb: stopped by {number.name}.\n"
    assert process.communicate(timeout=30)[1] == problems and process.returncode == 128 + number
    kept = nbformat.read(tmp_path / "out.failed.ipynb", as_version=4).cells
    assert [cell.outputs[0].text for cell in kept] == [f"{kernel}\n", "begun\n"] and not psutil.pid_exists(kernel)


def test_surroundings_that_do_not_stop_a_kernel(tmp_path):
    """A kernelspec of a Python that is gone, a long temporary folder, a locale without accents."""
    (tmp_path / ("d" * 120)).mkdir()
    (spec := tmp_path / "kernels" / "python3").mkdir(parents=True)
    (spec / "kernel.json").write_text('{"argv": ["/gone/python"], "display_name": "Python 3", "language": "python"}')
    cell = "from multiprocessing.connection import Listener\nListener(family='AF_UNIX').close()\nprint('Díaz')"
    process = start(tmp_path, cell, JUPYTER_PATH=".", TMPDIR="d" * 120, PYTHONIOENCODING="ascii")
    assert process.communicate(timeout=60) == ("D\\xedaz\n", "")


def test_a_failing_cell_is_one_sentence_and_keeps_the_old_output(tmp_path, capfd):
    """A kernel that dies at its start, and why."""
    story, output, failed = (tmp_path / f"{name}.ipynb" for name in ("story", "out", "out.failed"))
    output.write_text("old")
    assert run(story, output, "print('so far')", "raise ValueError('no data; add some.')") == 2
    expected = f"What was executed is in {failed}\n{story}: ValueError: no data; add some.\n"
    assert capfd.readouterr().err.endswith(expected) and output.read_text() == "old"
    assert nbformat.read(failed, as_version=4).cells[0].outputs[0].text == "so far\n"
    assert run(story, output, "import os\nos._exit(1)") == 2 and "the kernel died" in capfd.readouterr().err
    assert run(story, output, "") == 0 and not failed.exists()
    (tmp_path / "ipykernel_launcher.py").write_text("raise ImportError('no kernel here')")
    assert run(story, output, "") == 2
    assert f"{story}: the kernel did not start: ImportError: no kernel here; try" in capfd.readouterr().err


def test_what_is_not_a_notebook(tmp_path, capfd):
    story = tmp_path / "story.ipynb"
    for content in (b"", b"no", b"[]", b"{}", b"\xff\xfe\x00"):
        story.write_bytes(content)
        assert main([str(story), "out.ipynb"]) == 2
        assert capfd.readouterr().err == f"{story}: not a notebook; name an .ipynb file.\n"
    assert main(["missing.ipynb", "out.ipynb"]) == 2 and "missing.ipynb: No such file" in capfd.readouterr().err
    assert run(story, tmp_path, "open('ran', 'w')") == 2 and not (tmp_path / "ran").exists()
