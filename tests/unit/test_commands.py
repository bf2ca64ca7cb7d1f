import sys

from derma.commands import progress


def test_a_log_gets_whole_lines_at_least_once_a_minute(monkeypatch, capsys):
    seconds = [1000.0]
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
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
            bar.set_postfix_str(f"file {number}")
            bar.update(10)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "30/100" in lines[0] and "file 2" in lines[0]


def test_a_kernel_gets_a_live_bar(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert list(progress("ab")) == ["a", "b"] and capsys.readouterr().out.startswith("\r  0%")
