"""Read, check, join and write tables of predictions and of the truth: ``results.csv``, ``ground_truth.csv`` and kin.

Two layouts are understood, for predictions and for the truth alike:

- this project's, with the header ``Id,task_1,task_2``;
- the challenge's, with the header ``image_id,melanoma,seborrheic_keratosis``, or with no header at all, as entries were
  submitted (https://challenge.isic-archive.com/landing/2017/44/).

Fields are separated by commas, semicolons, tabs, bars or blanks. Every refusal is a :class:`TableError` whose message
is one sentence that names the file and the row. Rows are numbered as an editor shows them, a header being row 1.
"""

from __future__ import annotations

import csv
import gc
import io
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

HEADERS = (("Id", "task_1", "task_2"), ("image_id", "melanoma", "seborrheic_keratosis"))
COLUMNS = HEADERS[0]
TASKS = {"task_1": "Melanoma", "task_2": "Seborrheic keratosis"}
EXPECTED = " or ".join(",".join(header) for header in HEADERS)
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")  # no text file holds these
# Only these, so that "lesion.1" and "lesion.2" stay two.
PICTURE_ENDING = re.compile(r"(?<=.)\.(jpe?g|png|tiff?|bmp|gif|webp|ppm|dcm|npy)$", re.IGNORECASE)
SEPARATORS = ("\t", ";", ",", "|", " ")


class TableError(ValueError):
    """A file cannot be used; the message is one sentence with the file and the row, and what to do."""


@dataclass(frozen=True)
class Table:
    """A checked table.

    Attributes:
        file: where it was read from, for messages.
        values: float64 columns ``task_1`` and ``task_2`` in [0, 1], indexed by the Id's file name without ending.
        identifiers: the Ids as they stand in the file, in the same order.
        rows: their rows in the file.
        warnings: what looks wrong but can be scored; one sentence each.
    """

    file: Path
    values: pd.DataFrame
    identifiers: list[str]
    rows: np.ndarray
    warnings: tuple[str, ...] = field(default=())


def _read_text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise TableError(
            f"{file}: no such file; name a CSV file of predictions, or of the truth with --truth, such as results.csv "
            "and ground_truth.csv, which skin_lesion_classification.ipynb writes."
        ) from None
    except OSError as error:
        raise TableError(f"{file}: cannot be read ({error.strerror}); name a CSV file.") from None
    # Excel's "Unicode text" is UTF-16, as its byte order mark tells; its CSV files are in the machine's old code page.
    encodings = ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "latin-1")
    text = "\0"
    for encoding in encodings:
        with suppress(UnicodeDecodeError):
            text = content.decode(encoding)
            break
    if CONTROL.search(text):
        raise TableError(f"{file}: not a text file; expected a CSV file with the header {EXPECTED}.")
    if not text.strip():
        raise TableError(f"{file}: the file is empty; expected the header {EXPECTED} and a row for each picture.")
    return text


def _split_rows(file: Path, text: str) -> tuple[list[int], list[list[str]]]:
    """Split a text into rows of fields, blank rows left out, and each row's number."""
    first = next(line for line in text.splitlines() if line.strip())
    separator = next((mark for mark in SEPARATORS if first.strip().count(mark) >= 2), ",")
    numbers, rows = [], []
    # newline=None: rows may end as on Unix, Windows or an old Mac
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=separator, skipinitialspace=True)
    try:
        for fields in reader:
            if any(map(str.strip, fields)):
                while len(fields) > 3 and not fields[-1].strip():  # separators at the end of a row
                    fields.pop()
                numbers.append(reader.line_num)
                rows.append(fields)
    except csv.Error as error:
        raise TableError(f"{file}, row {reader.line_num}: cannot be split into fields ({error}).") from None
    if separator in "\t;" and not any("." in value for row in rows[1:] for value in row[1:]):
        # A decimal comma, as a spreadsheet writes it in half of Europe.
        rows = [
            row[:1] + [re.sub(r"^\s*(\d*),(\d+([eE][+-]?\d+)?)\s*$", r"\1.\2", value) for value in row[1:]]
            for row in rows
        ]
    if not rows:
        raise TableError(f"{file}: no rows; expected the header {EXPECTED} and a row for each picture.")
    return numbers, rows


def _shown(value: str) -> str:
    """A field as a message can show it: in one line, and not too long."""
    return " ".join(value.split())[:60]


def _is_number(text: str) -> bool:
    if not text.isascii() or "_" in text:  # which Python reads as numbers too
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _drop_header(file: Path, numbers: list[int], rows: list[list[str]]) -> None:
    """Remove the header row, if there is one; any header but the two known ones is refused."""
    known = [[name.lower() for name in header] for header in HEADERS]
    if [name.strip().lower() for name in rows[0]] in known:
        del numbers[0], rows[0]
    elif not any(_is_number(value) for value in rows[0][1:]):
        found = _shown(",".join(rows[0]))
        raise TableError(f"{file}, row {numbers[0]}: the header is '{found}'; it should be {EXPECTED}.")
    if not rows:
        raise TableError(f"{file}: no rows below the header; each picture needs one.")


def _refuse(file: Path, wrong: np.ndarray, numbers: np.ndarray, values: list[str], name: str, what: str) -> None:
    """Raise for the first wrong row, saying how many more there are."""
    if wrong.any():
        position = int(np.argmax(wrong))
        more = int(wrong.sum()) - 1
        others = f" ({more:,} more rows likewise)" if more else ""
        raise TableError(f"{file}, row {numbers[position]}: {name} '{_shown(values[position])}' {what}{others}.")


def _numbers(values: list[str]) -> np.ndarray:
    """Return float64 numbers, NaN where a field is none."""
    together = "".join(values)
    try:
        if together.isascii() and "_" not in together:
            return np.array(values, dtype=np.float64)
    except ValueError:
        pass
    return np.array([float(value) if _is_number(value) else np.nan for value in values])


def _stems(identifiers: list[str]) -> list[str]:
    """Return the file names without folder and ending: ``data/x/a.b.jpg`` and ``C:\\x\\a.b.png`` are both ``a.b``."""
    names = (identifier.replace("\\", "/").rsplit("/", 1)[-1] for identifier in identifiers)
    return [PICTURE_ENDING.sub("", name) for name in names]


def _warnings(file: Path, values: dict[str, np.ndarray]) -> tuple[str, ...]:
    messages = []
    for number, (column, numbers) in enumerate(values.items(), start=1):
        distinct = len(np.unique(numbers))
        if distinct <= 2 and len(numbers) > 2:
            messages.append(
                f"{file}: the predictions of category {number} ({TASKS[column].lower()}) take only {distinct} distinct "
                "value(s): hard labels? An area under a curve with one corner says little; give probabilities."
            )
    return tuple(messages)


def read_table(file: str | os.PathLike, *, truth: bool = False) -> Table:
    """Read predictions, or the truth.

    A column that looks like percent (some above 10, a tenth or more above 1, none above 100) is divided by 100, with a
    warning; a column with two distinct values or fewer gets a warning too.

    Args:
        file: a text file in one of the layouts above, in UTF-8 or UTF-16.
        truth: whether it holds the truth, 0 or 1, and not probabilities.

    Raises:
        TableError: the file is missing, empty, binary, or has another header; a row has not three fields; an Id is
            empty or stands twice; a value is not a finite number from 0 to 1 (for the truth: neither 0 nor 1).
    """
    collecting = gc.isenabled()
    gc.disable()  # a million rows are millions of small objects, and none of them garbage: looking takes half the time
    try:
        return _read_table(Path(file), truth)
    finally:
        if collecting:
            gc.enable()


def _read_table(file: Path, truth: bool) -> Table:
    numbers, rows = _split_rows(file, _read_text(file))
    _drop_header(file, numbers, rows)
    line = np.array(numbers)
    lengths = np.array([len(row) for row in rows])
    if (lengths != 3).any():
        _refuse(file, lengths != 3, line, [",".join(row) for row in rows], "the row", "should have three fields")
    identifiers, *columns = (list(map(str.strip, column)) for column in zip(*rows, strict=True))
    stems = pd.Index(_stems(identifiers), name="Id")
    _refuse(file, np.array(stems == ""), line, identifiers, "Id", "is empty; give the picture's file name")
    again = "stands in the file twice; keep one row for each picture"
    _refuse(file, stems.duplicated(), line, identifiers, "Id", again)

    values = dict(zip(COLUMNS[1:], map(_numbers, columns), strict=True))
    messages: tuple[str, ...] = ()
    for name, texts in zip(values, columns, strict=True):
        _refuse(file, ~np.isfinite(values[name]), line, texts, name, "is not a finite number; give one from 0 to 1")
    if truth:
        for name, texts in zip(values, columns, strict=True):
            _refuse(file, ~np.isin(values[name], (0, 1)), line, texts, name, "should be 0 or 1, being the truth")
    else:
        for number, (name, column) in enumerate(values.items(), start=1):
            # One slip above 1 is an error, and so are odds or logits; percent fill their range.
            if column.min() >= 0 and 10 < column.max() <= 100 and (column > 1).mean() >= 0.1:
                values[name] = column / 100
                messages += (
                    f"{file}: the predictions of category {number} ({TASKS[name].lower()}) reach {column.max():g}: "
                    "percent? They were divided by 100.",
                )
        for name, texts in zip(values, columns, strict=True):
            wrong = (values[name] < 0) | (values[name] > 1)
            _refuse(file, wrong, line, texts, name, "should be a probability from 0 to 1")
        messages += _warnings(file, values)
    return Table(file, pd.DataFrame(values, index=stems), identifiers, line, messages)


def join(predictions: Table, truth: Table) -> pd.DataFrame:
    """Put each picture's truth beside its predictions, by Id and never by row order.

    Returns:
        Float64 columns ``task_1``, ``task_2`` (predictions), ``true_1`` and ``true_2`` (0 or 1), in the truth's order.

    Raises:
        TableError: an Id that only one of them has, a picture that is both melanoma and keratosis, or a truth with one
            class only.
    """
    missing = truth.values.index.difference(predictions.values.index, sort=False)
    if len(missing):
        others = f" and {len(missing) - 1:,} more of the {len(truth.values):,} pictures" if len(missing) > 1 else ""
        raise TableError(
            f"{predictions.file}: no prediction for '{_shown(missing[0])}'{others} in {truth.file}; add a row for each."
        )
    unknown = ~predictions.values.index.isin(truth.values.index)
    if unknown.any():
        identifiers = list(predictions.values.index)
        what = f"is not in {truth.file}; score with the truth of the same pictures"
        _refuse(predictions.file, unknown, predictions.rows, identifiers, "Id", what)
    both = (truth.values == 1).all(axis=1).to_numpy()
    _refuse(truth.file, both, truth.rows, list(truth.values.index), "Id", "is both melanoma and seborrheic keratosis")
    joined = truth.values.rename(columns=lambda name: name.replace("task", "true")).join(predictions.values)
    for number, name in enumerate(TASKS.values(), start=1):
        if joined[f"true_{number}"].nunique() < 2:
            raise TableError(
                f"{truth.file}: only one class for category {number} ({name.lower()}); an area under the ROC curve "
                "needs pictures of both."
            )
    return joined[["task_1", "task_2", "true_1", "true_2"]]


def tables_from_probabilities(
    ids: list[str], targets: np.ndarray, probabilities: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the contents of ``results.csv`` and ``ground_truth.csv``.

    Args:
        ids: the pictures' paths below the repository's root.
        targets: (N,) class numbers, 0 melanoma, 1 nevus, 2 seborrheic keratosis.
        probabilities: (N, 3) class probabilities.
    """
    results = pd.DataFrame({"Id": ids, "task_1": probabilities[:, 0], "task_2": probabilities[:, 2]})
    truth = pd.DataFrame({"Id": ids, "task_1": (targets == 0).astype(int), "task_2": (targets == 2).astype(int)})
    return results, truth


def write_table(table: pd.DataFrame, file: str | os.PathLike, decimals: int = 6) -> None:
    """Write ``results.csv`` or ``ground_truth.csv``, all or nothing.

    Args:
        table: columns ``Id``, ``task_1`` and ``task_2``.
        file: target; its folder is made if it is missing.
        decimals: of fractions; too few would make ties of what is close.

    Raises:
        OSError: it cannot be written; an old file is then as it was.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".part")
    try:
        table.to_csv(partial, index=False, float_format=f"%.{decimals}f", lineterminator="\n")
        os.replace(partial, file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
