"""What the committed notebooks and the README show: little enough to hold in the head, executed in order, and true."""

import re
import sys

import nbformat
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import readability


def code_cells(name):
    notebook = nbformat.read(ROOT / name, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cells):
    return "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")


def test_everything_is_within_the_limits():
    measured = readability.measure(ROOT)
    assert not {row: measured[row] for row in readability.over(measured)}


def test_the_measures_count_what_they_say():
    source = """
import os
from math import pi
level, other = 1, 2
small = cfg.size < 3
class Settings(Base):
    name: str = "x"
    count: int = 3
def reads():
    inner = level + pi
    return [other for _ in os.environ if cfg.name] + [inner]
if small and level:
    pass
first = 1 if cfg.count else 2
for fold in range(3):
    for epoch in range(9):
        if level or other:  # a branch and an operand

            pass
"""
    assert readability.settings(f"class Base(Root):\n    seed: int = 0\n{source}") == ["name", "count", "seed"]
    assert readability.conditionals_on_settings(source) == 3
    assert readability.training_loop(source) == (5, 5)
    assert readability.globals_read(source)["reads"] == {"level", "other"}
    text = "One two three. Four five six seven!\n\n```\nmake run\n```\n| a | b | c | d | e |\n"
    assert readability.readme_words(text) == (22, 7, 4, 4)


@pytest.mark.parametrize("name", readability.NOTEBOOKS)
def test_committed_notebooks_were_executed_in_order_without_errors_on_the_sample(name):
    assert (ROOT / name).stat().st_size < 1.5e6
    code = code_cells(name)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr"
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert text.count("\n") <= 60 and "Warning" not in text and str(ROOT) not in text, text
    assert re.search(r"(data|models)/sample\b", printed(code))


@pytest.mark.parametrize("name", readability.NOTEBOOKS)
def test_every_figure_of_a_notebook_has_a_title(name):
    code = code_cells(name)
    functions = [part for cell in code for part in re.split(r"^(?=\S)", cell.source, flags=re.MULTILINE)]
    titled = [part[4 : part.index("(")] for part in functions if part.startswith("def ") and "title" in part]
    titled = re.compile("|".join(["title", r"figures\.", *(rf"\b{each}\(" for each in titled)]))
    for cell in code:
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert titled.search(cell.source), cell.source


def test_the_committed_classifier_learned_the_sample_and_the_readme_shows_its_scores():
    text = printed(code_cells(readability.NOTEBOOKS[0]))
    scores = re.findall(r"Category \d Score: [\d.]+", text)
    assert len(scores) == 3 and float(scores[2].split()[-1]) > 0.90
    assert "\n".join(scores) in (ROOT / "README.md").read_text(encoding="utf-8")
