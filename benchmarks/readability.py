"""Measure how much a reader has to hold in the head, and compare it with the limits.

    python benchmarks/readability.py    # exit code 1 if a number is over its limit

* A code line is a line that is not blank; a comment is one too.
* A setting is an annotated field of the notebook's class Settings.
* A conditional on a setting is an if, elif, while, ternary or comprehension's condition that reads ``cfg.<name>``, or a
  name that the top level assigns from a comparison or an and / or of settings.
* The training loop is the function that holds a ``for epoch in ...``; at top level, the whole statement around it. Its
  complexity is 1 + its ifs, loops, ternaries, comprehensions and their conditions, exception handlers and further
  operands of and / or (as radon counts).
* Notebook globals are the names that the notebook binds at top level, other than by importing. Counted are those that
  a function or a class reads, with everything nested in it; the largest count stands in the table.
* A shared line has more than 25 characters, is neither an import nor a comment, and stands in both notebooks.
"""

from __future__ import annotations

import ast
import json
import re
import symtable
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from derma.commands import run_main
from derma.settings import settings_in

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("skin_lesion_classification.ipynb", "dataset_structure_visualization.ipynb")  # in this order in each row

LIMITS = {
    "code lines, classification / structure": (350, 280),
    "longest code cell, classification / structure": (45, 45),
    "settings": (20, 12),
    "conditionals on a setting, both notebooks": (12,),
    "training loop: lines / complexity": (45, 10),
    "notebook globals read by any function": (6,),
    "code lines that stand in both notebooks": (10,),
    "README: words / before the first command": (900, 80),
    "README, words a sentence: 90th percentile / longest": (28, 40),
    "lines in derma + tests + benchmarks": (8250,),
}
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.comprehension, ast.match_case)


def code_cells(notebook: Path) -> list[str]:
    """Return the source of a notebook's code cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def code_lines(source: str) -> list[str]:
    """Return the stripped lines of a source that are not blank."""
    return [line.strip() for line in source.splitlines() if line.strip()]


def conditionals_on_settings(source: str) -> int:
    """Return how many conditionals of a source ask for a setting."""
    tree, pattern = ast.parse(source), r"\bcfg\.\w"
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.BoolOp, ast.Compare, ast.UnaryOp)):
            pattern += rf"|\b{ast.unparse(node.targets[0])}\b" if re.search(pattern, ast.unparse(node.value)) else ""
    tests = [node.test for node in ast.walk(tree) if isinstance(node, (ast.If, ast.IfExp, ast.While))]
    tests += [test for node in ast.walk(tree) if isinstance(node, ast.comprehension) for test in node.ifs]
    return sum(bool(re.search(pattern, ast.unparse(test))) for test in tests)


def training_loop(source: str) -> tuple[int, int]:
    """Return the lines and the cyclomatic complexity of the training loop, (0, 0) if there is none."""
    tree = ast.parse(source)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    nodes += [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    lines, complexity = [0], [0]
    for node in nodes:
        if re.search(r"^ *for epoch in", ast.unparse(node), flags=re.MULTILINE):
            parts = list(ast.walk(node))
            conditions = sum(len(part.ifs) for part in parts if isinstance(part, ast.comprehension))
            operands = sum(len(part.values) - 1 for part in parts if isinstance(part, ast.BoolOp))
            complexity.append(1 + sum(isinstance(part, BRANCHES) for part in parts) + conditions + operands)
            lines.append(node.end_lineno - node.lineno + 1)
    return max(lines), max(complexity)


def globals_read(source: str) -> dict[str, set[str]]:
    """Return, for each function and class at a notebook's top level, the notebook's own globals that it reads."""
    top = symtable.symtable(source, "notebook", "exec")
    own = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() and not symbol.is_imported()}

    def read(scope: symtable.SymbolTable) -> set[str]:
        names = {each.get_name() for each in scope.get_symbols() if each.is_global() and each.is_referenced()}
        return names.union(*map(read, scope.get_children()))

    comprehensions = {"listcomp", "setcomp", "dictcomp", "genexpr"}  # at top level they are no functions
    scopes = [scope for scope in top.get_children() if scope.get_name() not in comprehensions]
    return {scope.get_name(): read(scope) & own for scope in scopes}


def readme_words(text: str) -> tuple[int, int, int, int]:
    """Return a README's words, those before the first code block, and the words of its long and longest sentences."""
    prose = re.sub(r"```.*?```|^\|.*?$|<[^>]+>", "", text, flags=re.DOTALL | re.MULTILINE)
    sentences = re.split(r"(?<=[.!?])\s+|\n\n", prose)
    lengths = sorted(len(sentence.split()) for sentence in sentences if len(sentence.split()) > 2)
    before = len(text.split("```")[0].split())
    return len(text.split()), before, lengths[int(0.9 * len(lengths))], lengths[-1]


def measure(root: Path) -> dict[str, tuple[int, ...]]:
    """Return the numbers of a checkout, in the rows of :data:`LIMITS`."""
    cells = [code_cells(root / name) for name in NOTEBOOKS]
    sources = ["\n".join(each) for each in cells]
    long_lines = [{line for line in code_lines(each) if len(line) > 25} for each in sources]
    shared = [line for line in long_lines[0] & long_lines[1] if not line.startswith(("#", "import ", "from "))]
    files = [file for folder in ("derma", "tests", "benchmarks") for file in (root / folder).rglob("*.py")]
    words = readme_words((root / "README.md").read_text(encoding="utf-8"))
    numbers = [
        tuple(len(code_lines(each)) for each in sources),
        tuple(max(len(code_lines(cell)) for cell in each) for each in cells),
        tuple(len(settings_in(root / name)) for name in NOTEBOOKS),
        (sum(map(conditionals_on_settings, sources)),),
        training_loop(sources[0]),
        (max(len(names) for each in sources for names in globals_read(each).values()),),
        (len(shared),),
        words[:2],
        words[2:],
        (sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files),),
    ]
    return dict(zip(LIMITS, numbers, strict=True))


def over_limit(measured: dict[str, tuple[int, ...]]) -> list[str]:
    """Return the rows in which a number is over its limit."""
    return [row for row, limits in LIMITS.items() if any(a > b for a, b in zip(measured[row], limits))]


def main() -> int:
    measured = measure(ROOT)
    wrong = over_limit(measured)
    print(f"{'':52} {'now':>12} {'at most':>12}")
    for row, limits in LIMITS.items():
        now, most = (" / ".join(f"{number:,}" for number in numbers) for numbers in (measured[row], limits))
        print(f"{row:52} {now:>12} {most:>12}  {'over' if row in wrong else 'ok'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_main(main)
