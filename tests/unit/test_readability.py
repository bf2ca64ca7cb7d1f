"""What the committed notebooks and the README show: little enough to hold in the head, executed in order, and true."""

import json
import re
import symtable

import pytest
from conftest import ROOT

from derma.settings import settings_in

LINES = {"skin_lesion_classification.ipynb": 350, "dataset_structure_visualization.ipynb": 280}  # of code, at most


def cells_of(name):
    return [cell for cell in json.loads((ROOT / name).read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", LINES)
def test_a_notebook_fits_in_the_head(name):
    """Its lines of code, those of a cell (the training loop is in one), settings, and globals that a function reads."""
    sources = ["".join(cell["source"]) for cell in cells_of(name)]
    counts = [len([line for line in source.splitlines() if line.strip()]) for source in sources]
    assert sum(counts) <= LINES[name] and max(counts) <= 45 and len(settings_in(ROOT / name)) <= 20
    top = symtable.symtable("\n".join(sources), name, "exec")
    own = {each.get_name() for each in top.get_symbols() if each.is_assigned() and not each.is_imported()}

    def read(scope):
        names = {each.get_name() for each in scope.get_symbols() if each.is_global() and each.is_referenced()}
        return names.union(*map(read, scope.get_children()))

    assert all(len(read(scope) & own) <= 6 for scope in top.get_children())


def test_the_readme_and_the_modules_are_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900 and len(text.split("```")[0].split()) <= 80  # before the first command
    prose = re.sub(r"```.*?```|^\|.*?$|<[^>]+>", "", text, flags=re.DOTALL | re.MULTILINE)
    assert max(len(sentence.split()) for sentence in re.split(r"(?<=[.!?])\s+|\n\n", prose)) <= 25
    files = [file for folder in ("derma", "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 7910


@pytest.mark.parametrize("name", LINES)
def test_committed_notebooks_were_executed_in_order_without_errors_on_the_sample(name):
    assert (ROOT / name).stat().st_size < 1.5e6
    cells, texts = cells_of(name), []
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            texts.append("".join(output.get("text", output.get("data", {}).get("text/plain", ""))))
            assert texts[-1].count("\n") <= 60 and "Warning" not in texts[-1] and str(ROOT) not in texts[-1]
            source = "".join(cell["source"])
            assert "image/png" not in output.get("data", {}) or re.search(r"title|figures\.", source), source
    assert re.search(r"(data|models)/sample\b", "\n".join(texts))
    if name == next(iter(LINES)):  # README quotes its scores
        scores = re.findall(r"Category \d Score: [\d.]+", "\n".join(texts))
        assert "\n".join(scores[:3]) in (ROOT / "README.md").read_text() and float(scores[2].split()[-1]) > 0.90
