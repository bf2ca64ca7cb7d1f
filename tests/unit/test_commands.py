import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from derma.commands import progress
from derma.files import write_bytes, write_text

COMMAND = """
import os, signal, sys
from derma.commands import Parser, progress, run_main

def main():
    Parser().parse_args()
    for number in progress(range(9000)):
        print(number, "b\\xf6se\\udcff", flush=number % 1000 == 0)
    open("written", "w").close()
    if "INTERRUPT" in os.environ:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
        os.kill(os.getpid(), signal.SIGINT)

run_main(main)
"""
COMMANDS = "check", "execute", "fetch", "predict", "sample", "shrink"
FULL = "The output is incomplete: No space left on device; redirect it to another place.\n"


@pytest.mark.skipif(os.name != "posix", reason="a shell with pipes and /dev/full")
@pytest.mark.parametrize(
    ("line", "code", "out", "error"),
    [
        ("python command.py | head -1", 0, "0 b\xf6se\\udcff\n", ""),
        ("python -u command.py 2>&1 | true", 0, "", ""),
        ("python command.py >&-", 0, "", ""),
        ("python command.py > /dev/full", 2, "", FULL),
        ("PYTHONIOENCODING=ascii python command.py | tail -1", 0, "8999 b\\xf6se\\udcff\n", ""),
        ("INTERRUPT=1 python command.py 2>&1 | tail -1", 130, "Interrupted.\n", ""),
    ],
)
def test_output_never_ends_the_work(tmp_path, line, code, out, error):
    """Closed pipes and names that the locale lacks are no reason to stop."""
    (tmp_path / "command.py").write_text(COMMAND)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    line = ["bash", "-o", "pipefail", "-c", line]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout, done.stderr) == (code, out, error) and (tmp_path / "written").exists()


def test_every_command_ends_so():
    files = [ROOT / "get_results.py", *ROOT.glob("derma/*.py"), *ROOT.glob("benchmarks/*.py")]
    tails = {file.name: file.read_text("utf-8").partition("__main__")[2] for file in files}
    assert set(tails.values()) == {"", '":\n    run_main(main)\n'}, tails


def test_files_are_whole_or_not_there(tmp_path):
    """Names that are not UTF-8; and nothing is left of a file that could not be written."""
    write_text("b\xf6se\udcff", tmp_path / "report.csv")
    assert (tmp_path / "report.csv").read_text("utf-8") == "b\xf6se\\udcff"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_bytes(b"", tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"report.csv", "folder"}


def test_a_log_gets_whole_lines_at_least_once_a_minute(monkeypatch, capsys):
    seconds = [1000.0]
    monkeypatch.delitem(sys.modules, "ipykernel.kernelapp", raising=False)
    monkeypatch.setattr("tqdm.std.time", lambda: seconds[0])
    for _ in progress(range(100), desc="epoch 1"):
        seconds[0] += 7
    lines = capsys.readouterr().out.split("\n")[:-1]
    assert all(line.startswith("epoch 1: ") for line in lines)
    assert 700 / 60 <= len(lines) <= 700 / 30 + 1
    for _ in progress(range(10)):
        seconds[0] += 2
    assert capsys.readouterr().out == ""  # done within 30 seconds
    with progress(total=100, unit="B") as bar:
        for number in range(9):
            seconds[0] += 10
            bar.set_postfix_str(f"file {number}", refresh=False)
            bar.update(10)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "30/100" in lines[0] and "file 2" in lines[0]


def test_a_kernel_gets_a_live_bar(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", sys)
    assert list(progress("ab")) == ["a", "b"] and capsys.readouterr().out.startswith("\r  0%")


@pytest.mark.parametrize("name", ["get_results", *(f"derma.{name}" for name in COMMANDS)])
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main(["--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: ")
