"""What the committed notebooks and the README show: little enough to hold in the head, executed in order, and true."""

import json
import re

import pytest
import readability
from conftest import ROOT

SOURCE = """
from math import pi
level, other = 1, 2
small = cfg.size < 3
def reads():
    inner = level + pi
    return [other for _ in range(3) if cfg.name] + [inner]
if small and level:
    first = 1 if cfg.count else 2
for fold in range(3):
    for epoch in range(9):
        if level or other:  # a branch and an operand
            pass
"""


def test_the_measures_count_what_they_say():
    assert readability.conditionals_on_settings(SOURCE) == 3
    assert readability.training_loop(SOURCE) == (4, 5)
    assert readability.globals_read(SOURCE)["reads"] == {"level", "other"}
    text = "One two three. Four five six seven!\n\n```\nmake run\n```\n| a | b | c | d | e |\n"
    assert readability.readme_words(text) == (22, 7, 4, 4)


def test_everything_is_within_the_limits():
    assert readability.over_limit(readability.measure(ROOT)) == []


@pytest.mark.parametrize("name", readability.NOTEBOOKS)
def test_committed_notebooks_were_executed_in_order_without_errors_on_the_sample(name):
    assert (ROOT / name).stat().st_size < 1.5e6
    cells = [cell for cell in json.loads((ROOT / name).read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    texts = []
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            texts.append("".join(output.get("text", output.get("data", {}).get("text/plain", ""))))
            assert texts[-1].count("\n") <= 60 and "Warning" not in texts[-1] and str(ROOT) not in texts[-1]
            source = "".join(cell["source"])
            assert "image/png" not in output.get("data", {}) or re.search(r"title|figures\.", source), source
    assert re.search(r"(data|models)/sample\b", "\n".join(texts))
    if name == readability.NOTEBOOKS[0]:  # README quotes its scores
        scores = re.findall(r"Category \d Score: [\d.]+", "\n".join(texts))
        assert "\n".join(scores[:3]) in (ROOT / "README.md").read_text() and float(scores[2].split()[-1]) > 0.90
