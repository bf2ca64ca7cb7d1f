"""Read, check, join and write tables of predictions and of the truth, such as ``results.csv``.

The header is this project's, ``Id,task_1,task_2``, the challenge's, ``image_id,melanoma,seborrheic_keratosis``, or
missing, as entries were submitted (https://challenge.isic-archive.com/landing/2017/44/). Fields are separated by
commas, semicolons, tabs, bars or spaces. Every error is a :class:`TableError`, one sentence that names the file and the
row. Rows are numbered as in an editor: a header is row 1.
"""

import argparse
import csv
import io
import os
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from derma.files import write_bytes, write_together

HEADERS = (("Id", "task_1", "task_2"), ("image_id", "melanoma", "seborrheic_keratosis"))
COLUMNS = HEADERS[0]
TASKS = {"task_1": "Melanoma", "task_2": "Seborrheic keratosis"}
CLASSES = ("melanoma", "nevus", "seborrheic_keratosis")  # the class folders
EXPECTED = " or ".join(",".join(header) for header in HEADERS)
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")  # not found in text files
# Files with these endings are taken for images. Pillow cannot read the last two, of phones, and says so.
ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".jpx", ".png", ".apng", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".bmp", ".dib", ".tga", ".psd", ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif"),
}
# Only these end a name, so that "lesion.1" and "lesion.2" stay two.
IMAGE_ENDING = re.compile(rf"(?<=.)({'|'.join(map(re.escape, ENDINGS | {'.dcm', '.npy'}))})$", re.IGNORECASE)
# The first field of a header: no digit, unlike all images' names, or pandas' own name of a column without one.
HEADER_ID = re.compile(r"[^\d./\\]*|unnamed: \d+", re.IGNORECASE)
SEPARATORS = ("\t", ";", ",", "|", " ")


class TableError(ValueError):
    """A file cannot be used; the message says which file and row, what is wrong and what to do."""


@dataclass(frozen=True)
class Table:
    """A checked table.

    Attributes:
        file: its path, for messages.
        values: float64 columns ``task_1`` and ``task_2``, indexed by the Id's file name without extension, in one
            case and one Unicode form; with its folders, where two of them hold files of one name.
        identifiers, rows: the Ids as they stand in the file, and their rows in it.
        warnings: what looks wrong but can be scored; one sentence each.
    """

    file: Path
    values: pd.DataFrame
    identifiers: list[str]
    rows: np.ndarray
    warnings: tuple[str, ...]


def _read_text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        what = "no such file; name the CSV file of predictions, or with --truth that of the truth"
        raise TableError(f"{file}: {what}.") from None
    except OSError as error:
        raise TableError(f"{file}: cannot be read ({error.strerror}); name a CSV file.") from None
    # Excel's "Unicode text" is UTF-16, which starts with a byte order mark; its CSV files use the machine's code page.
    text = "\0"
    for encoding in ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("latin-1", "utf-8-sig"):
        with suppress(UnicodeDecodeError):
            text = content.decode(encoding)
    if CONTROL.search(text):
        raise TableError(f"{file}: not a text file; expected a CSV file with the header {EXPECTED}.")
    return text


def _split_rows(file: Path, text: str) -> tuple[list[int], list[list[str]]]:
    """Split a text into rows of fields without blank rows; returns the row numbers and the rows."""
    first = next(iter(text.strip().splitlines()), "")
    separator = next((mark for mark in SEPARATORS if first.count(mark) >= 2), ",")
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
        decimal_comma = re.compile(r"^\s*(\d*),(\d+([eE][+-]?\d+)?)\s*$")  # of many languages' spreadsheets
        rows = [row[:1] + [decimal_comma.sub(r"\1.\2", value) for value in row[1:]] for row in rows]
    return numbers, rows


def _shown(value: str) -> str:
    """A field in one line of at most 60 characters."""
    return " ".join(value.split())[:60]


def number(text: str) -> float:
    """Return the number in a text, or NaN; underscores and other scripts' digits, which Python reads, are none."""
    try:
        return float(text) if text.isascii() and "_" not in text else np.nan
    except ValueError:
        return np.nan


def _is_header(rows: list[list[str]]) -> bool:
    """Whether the first row names columns, also where a DataFrame's columns are numbers, as in "Id,0,1"."""
    values = np.array([number(value) for value in rows[0][1:]])
    if np.isnan(values).all() or rows[0][0].strip().lower() in ("", "id", "image", "image_id"):
        return True
    unlike = [bool(HEADER_ID.fullmatch(row[0].strip())) for row in rows]
    return unlike[0] and not any(unlike[1:]) and bool((values % 1 == 0).all())


def _drop_header(file: Path, numbers: list[int], rows: list[list[str]]) -> None:
    """Remove the header row, if there is one; an unknown header is an error."""
    known = [[name.lower() for name in header] for header in HEADERS]
    if rows and [name.strip().lower() for name in rows[0]] in known:
        del numbers[0], rows[0]
    elif rows and _is_header(rows):
        found = _shown(",".join(rows[0]))
        raise TableError(f"{file}, row {numbers[0]}: the header is '{found}'; it should be {EXPECTED}.")
    if not rows:
        raise TableError(f"{file}: no rows; expected the header {EXPECTED} and a row for each image.")


def _refuse(file: Path, wrong: np.ndarray, numbers: np.ndarray, values: list[str], name: str, what: str) -> None:
    """Raise for the first wrong row, if any, with the number of further ones."""
    if wrong.any():
        position = int(np.argmax(wrong))
        more = int(wrong.sum()) - 1
        others = f" ({more:,} more rows likewise)" if more else ""
        raise TableError(f"{file}, row {numbers[position]}: {name} '{_shown(values[position])}' {what}{others}.")


def _normalised(text: str) -> str:
    """A path in one case and one Unicode form, with slashes."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text.strip()).casefold()).replace("\\", "/")


def name_of(identifier: str) -> str:
    """Return an Id's file name without extension, in one case and one Unicode form: C:\\x\\A.b.png is a.b."""
    return IMAGE_ENDING.sub("", _normalised(identifier).rsplit("/", 1)[-1])


def keys_of(identifiers: list[str]) -> pd.Index:
    """Return what Ids are joined by: their names or, where two folders hold files of one name, folders and names."""
    names = pd.Index(map(name_of, identifiers), name="Id")
    folders = [_normalised(each).rpartition("/")[0] for each in identifiers]
    if names.has_duplicates and all(folders):
        return pd.Index([f"{folder}/{name}" for folder, name in zip(folders, names)], name="Id")
    return names


def why_ambiguous(files: list[str]) -> str | None:
    """Return in a sentence which two files would have one key (see :func:`keys_of`), or None."""
    first: dict[str, str] = {}
    for file, key in zip(files, keys_of(files)):
        if (other := first.setdefault(key, file)) != file:
            return f"{file}: has the name of {other} (case and extension do not count); rename one."
    return None


def read_table(file: str | os.PathLike, *, truth: bool = False, scores: bool = False) -> Table:
    """Read predictions in [0, 1] or, if ``truth``, 0 or 1 or, if ``scores``, any numbers, which only have an order.

    A column that looks like percent (some above 10, a tenth or more above 1, none above 100) is divided by 100, with a
    warning; a column with two distinct values or fewer gets a warning too.

    Raises:
        TableError: the file is missing, empty, binary, or has an unknown header; a row has not three fields; an Id is
            empty or a duplicate; a value is not a finite number from 0 to 1.
    """
    file = Path(file)
    numbers, rows = _split_rows(file, _read_text(file))
    _drop_header(file, numbers, rows)
    line = np.array(numbers)
    wrong = np.array([len(row) != 3 for row in rows])
    _refuse(file, wrong, line, list(map(",".join, rows)), "the row", "should have three fields")
    identifiers, *columns = (list(map(str.strip, column)) for column in zip(*rows, strict=True))
    keys = keys_of(identifiers)
    _refuse(file, np.array(keys == ""), line, identifiers, "Id", "is empty; give the image's file name")
    once = "is a duplicate; keep one row for each image (extension and case do not count)"
    _refuse(file, keys.duplicated(), line, identifiers, "Id", once)

    values, messages = {}, []
    for name, texts in zip(COLUMNS[1:], columns, strict=True):
        column = np.array(list(map(number, texts)))
        what = f"{file}: the predictions of category {name[-1]} ({TASKS[name].lower()})"
        _refuse(file, ~np.isfinite(column), line, texts, name, "is not a finite number; give one from 0 to 1")
        if truth:
            _refuse(file, ~np.isin(column, (0, 1)), line, texts, name, "should be 0 or 1 in a truth")
        # One slip above 1 is an error, and so are odds or logits; percent fill their range.
        elif not scores and column.min() >= 0 and 10 < column.max() <= 100 and (column > 1).mean() >= 0.1:
            messages.append(f"{what} reach {column.max():g}: percent? They were divided by 100.")
            column = column / 100
        wrong = ((column < 0) | (column > 1)) & (not scores)
        logits = ", but these look like logits: write their softmax, or score the AUC alone with --scores"
        hint = logits if wrong.mean() >= 0.1 else ""
        _refuse(file, wrong, line, texts, name, "should be a probability from 0 to 1" + hint)
        if not truth and len(column) > 2 and (few := len(np.unique(column))) <= 2:
            messages.append(f"{what} have only {few} distinct value(s): hard labels? ROC curves need probabilities.")
        values[name] = column
    return Table(file, pd.DataFrame(values, index=keys), identifiers, line, tuple(messages))


def truth_from_ids(table: Table) -> Table:
    """Return the truth of a table whose Ids are paths with a class folder, ``.../melanoma/ISIC_0000002.jpg``."""
    folders = np.array([PurePosixPath(identifier.replace("\\", "/")).parent.name for identifier in table.identifiers])
    unknown = ~np.isin(folders, CLASSES)
    what = f"has no class folder; give a path such as data/isic2017/train/{CLASSES[0]}/ISIC_0000002.jpg"
    _refuse(table.file, unknown, table.rows, table.identifiers, "Id", what)
    for name in sorted(set(CLASSES) - set(folders)):
        raise TableError(f"{table.file}: no image is in a folder '{name}'; all three classes are needed.")
    values = {"task_1": folders == CLASSES[0], "task_2": folders == CLASSES[2]}
    return replace(table, values=pd.DataFrame(values, index=table.values.index, dtype=float), warnings=())


def defined(joined: pd.DataFrame) -> list[int]:
    """Return which of the categories 1 and 2 have positives and negatives, and so a score; category 3 needs both."""
    return [k for k in (1, 2) if joined[f"true_{k}"].nunique() == 2]


def join(predictions: Table, truth: Table) -> pd.DataFrame:
    """Join predictions with the truth, by Id and never by row order.

    Returns:
        Columns ``Id`` (the truth's), ``task_1``, ``task_2`` (predictions), ``true_1`` and ``true_2`` (0 or 1), all but
        the first float64, in the truth's order.

    Raises:
        TableError: an Id that only one of them has, an image that is both melanoma and keratosis, or a truth with one
            class only, so that no category is :func:`defined`.
    """
    missing = np.flatnonzero(~truth.values.index.isin(predictions.values.index))
    unknown = ~predictions.values.index.isin(truth.values.index)
    if unknown.all():
        first, other = (_shown(table.identifiers[0]) for table in (predictions, truth))
        what = f"no Id of it is in {truth.file}: the first are '{first}' here and '{other}' there"
        raise TableError(f"{predictions.file}: {what}; score with the truth of the same images.")
    if len(missing):
        others = f" and {len(missing) - 1:,} more of the {len(truth.values):,} images" if len(missing) > 1 else ""
        lacks = f"no prediction for '{_shown(truth.identifiers[missing[0]])}'{others} in {truth.file}"
        raise TableError(f"{predictions.file}: {lacks}; add a row for each.")
    what = f"is not in {truth.file}; score with the truth of the same images"
    _refuse(predictions.file, unknown, predictions.rows, predictions.identifiers, "Id", what)
    both = (truth.values == 1).all(axis=1).to_numpy()
    _refuse(truth.file, both, truth.rows, truth.identifiers, "Id", "is both melanoma and seborrheic keratosis")
    true = truth.values.set_axis(["true_1", "true_2"], axis=1)
    if not defined(true):
        what = "only one class for category 1 (melanoma)"
        raise TableError(f"{truth.file}: {what}; an area under the ROC curve needs images of both.")
    return pd.DataFrame({"Id": truth.identifiers}, true.index).join(predictions.values).join(true)


def average(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the mean of predictions that :func:`join` has joined with one truth, joined with it too."""
    return parts[0].assign(**sum(part[["task_1", "task_2"]] for part in parts) / len(parts))


def tables_from_probabilities(
    ids: list[str], targets: np.ndarray, probabilities: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the contents of ``results.csv`` and ``ground_truth.csv``.

    Args:
        ids: the images' paths below the repository's root.
        targets: (N,) class indices, 0 melanoma, 1 nevus, 2 seborrheic keratosis.
        probabilities: (N, 3).
    """
    results = pd.DataFrame({"Id": ids, "task_1": probabilities[:, 0], "task_2": probabilities[:, 2]})
    truth = pd.DataFrame({"Id": ids, "task_1": (targets == 0).astype(int), "task_2": (targets == 2).astype(int)})
    return results, truth


def csv_of(table: pd.DataFrame) -> bytes:
    """Return columns ``Id``, ``task_1`` and ``task_2`` as the content of a file; the numbers read back as the same."""
    table = table.astype({name: np.float64 for name in COLUMNS[1:] if table[name].dtype.kind == "f"})
    return table.to_csv(index=False, columns=list(COLUMNS), lineterminator="\n").encode(errors="backslashreplace")


def write_table(table: pd.DataFrame, file: str | os.PathLike) -> None:
    """Write what :func:`csv_of` returns, all or nothing."""
    write_bytes(csv_of(table), file)


def output_file(text: str) -> Path:
    """Return the path of a file of predictions; a type for ``add_argument``."""
    file, what = Path(text), None
    if os.path.isdir(file):  # noqa: PTH112 - Path.is_dir raises for too long a path
        what = "a folder"
    elif file.name in ("ground_truth.csv", "held_out.csv"):
        what = "the name of another file that is written there"
    if what:
        raise argparse.ArgumentTypeError(f"'{text}' is {what}; name a file such as results.csv")
    return file


def write_predictions(out: Path, predictions: pd.DataFrame, truth: pd.DataFrame, held_out: pd.DataFrame | None) -> None:
    """Write an ensemble's predictions and, in their folder, ``ground_truth.csv`` and ``held_out.csv``, all or nothing.

    Raises:
        TableError: the folder holds another truth, or a ``held_out.csv`` that is not an earlier call's.
    """
    truth_file, held_out_file = out.with_name("ground_truth.csv"), out.with_name("held_out.csv")
    if held_out_file.exists() and (held_out is None or not out.exists()):
        raise TableError(f"{held_out_file}: not of these predictions; give --out a folder of its own.")
    contents = {truth_file: truth, held_out_file: held_out, out: predictions}
    if truth_file.exists():
        del contents[truth_file]
        old, keys = read_table(truth_file, truth=True).values, keys_of(truth["Id"].tolist())
        if set(keys) != set(old.index) or (truth[old.columns].set_axis(keys) != old.loc[keys]).any(axis=None):
            raise TableError(f"{truth_file}: not the truth of these images; give --out a folder of its own.")
    write_together({file: csv_of(table) for file, table in contents.items() if table is not None})
