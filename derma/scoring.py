"""Score predictions the way part 3 of the ISIC 2017 challenge did: three areas under ROC curves.

Category 1 is melanoma against the rest, category 2 seborrheic keratosis against the rest, category 3 their mean
(https://challenge.isic-archive.com/landing/2017/44/). No torch in here: a score should come in a second.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

COLUMNS = ("Id", "task_1", "task_2")
TASKS = {"task_1": "Melanoma", "task_2": "Seborrheic keratosis"}


class ScoringError(ValueError):
    """A file cannot be scored; the message is one sentence with the file and the row, and what to do."""


def read_table(file: str | os.PathLike, *, truth: bool = False) -> pd.DataFrame:
    """Read ``results.csv`` or ``ground_truth.csv``.

    Args:
        file: a CSV file with the header ``Id,task_1,task_2``.
        truth: whether it holds the truth, 0 or 1, and not probabilities.

    Returns:
        float64 columns ``task_1`` and ``task_2`` in [0, 1], indexed by the Id's file name without folder and ending.

    Raises:
        ScoringError: missing, empty, no text, another header, an Id twice, or a value that is no number from 0 to 1
            (for the truth: neither 0 nor 1).
    """
    file = Path(file)
    if not file.is_file():
        raise ScoringError(
            f"{file}: no such file; skin_lesion_classification.ipynb writes results.csv and ground_truth.csv when run."
        )
    try:
        # As text, so that a bad value can be shown as it stands in the file; skip_blank_lines would shift row numbers.
        table = pd.read_csv(file, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError:
        raise ScoringError(f"{file}: the file is empty; it should start with the header {','.join(COLUMNS)}.") from None
    except (UnicodeDecodeError, pd.errors.ParserError) as error:
        raise ScoringError(f"{file}: not a CSV file ({error}); expected the header {','.join(COLUMNS)}.") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus fields in row 2 for row names
        raise ScoringError(f"{file}, row 2: more fields than the header {','.join(COLUMNS)} has; remove the others.")
    if tuple(table.columns) != COLUMNS:
        found = ",".join(map(str, table.columns))[:60]
        raise ScoringError(f"{file}, row 1: the header is '{found}'; it should be {','.join(COLUMNS)}.")
    if table.empty:
        raise ScoringError(f"{file}: no rows below the header; each picture needs one.")

    stems = table["Id"].map(_stem)
    _refuse(file, stems == "", table["Id"], "Id", "is empty; give the picture's file name")
    _refuse(file, stems.duplicated(), table["Id"], "Id", "stands in the file twice; keep one row for each picture")
    values = {}
    for column in COLUMNS[1:]:
        numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
        wrong = ~numbers.isin((0.0, 1.0)) if truth else ~numbers.between(0, 1)  # NaN is not between
        _refuse(
            file, wrong, table[column], column, "should be 0 or 1" if truth else "should be a probability from 0 to 1"
        )
        values[column] = numbers.to_numpy()
    return pd.DataFrame(values, index=pd.Index(stems, name="Id"))


def _stem(identifier: str) -> str:
    return Path(identifier.strip().replace("\\", "/")).stem


def _refuse(file: Path, wrong: pd.Series, values: pd.Series, column: str, what: str) -> None:
    if wrong.any():
        position = int(np.argmax(wrong.to_numpy()))
        more = int(wrong.sum()) - 1
        others = f" (and {more} more such rows)" if more else ""
        # Row numbers as a spreadsheet shows them: the header is row 1.
        raise ScoringError(f"{file}, row {position + 2}: {column} '{values.iloc[position][:60]}' {what}{others}.")


def join(predictions: pd.DataFrame, truth: pd.DataFrame, file: str | os.PathLike = "results.csv") -> pd.DataFrame:
    """Put each picture's truth beside its predictions, by Id and never by row order.

    Args:
        predictions, truth: as :func:`read_table` returns them.
        file: the predictions' file name, for messages.

    Returns:
        Columns ``task_1``, ``task_2`` (predictions), ``true_1`` and ``true_2``, in the truth's order.

    Raises:
        ScoringError: an Id that only one of them has, or a truth with one class only.
    """
    missing = truth.index.difference(predictions.index)
    if len(missing):
        raise ScoringError(
            f"{file}: no prediction for '{missing[0]}' and {len(missing) - 1} more of the {len(truth)} pictures in the "
            "ground truth; add a row for each."
        )
    unknown = predictions.index.difference(truth.index)
    if len(unknown):
        row = predictions.index.get_loc(unknown[0]) + 2
        raise ScoringError(
            f"{file}, row {row}: '{unknown[0]}' is not in the ground truth ({len(unknown)} such rows); "
            "score with the ground truth of the same pictures."
        )
    joined = truth.rename(columns=lambda name: name.replace("task", "true")).join(predictions)
    for number, name in enumerate(TASKS.values(), start=1):
        if joined[f"true_{number}"].nunique() < 2:
            raise ScoringError(
                f"The ground truth holds only one class for category {number} ({name.lower()}); an area under the ROC "
                "curve needs both."
            )
    return joined[["task_1", "task_2", "true_1", "true_2"]]


def score(joined: pd.DataFrame) -> tuple[float, float, float]:
    """Return the areas under the ROC curve of categories 1, 2 and 3, each in [0, 1].

    Args:
        joined: as :func:`join` returns it.
    """
    first = float(roc_auc_score(joined["true_1"], joined["task_1"]))
    second = float(roc_auc_score(joined["true_2"], joined["task_2"]))
    return first, second, (first + second) / 2


def mean_auc(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Return category 3's score straight from arrays, as the training loop needs it after every epoch.

    Args:
        targets: (N,) class numbers, 0 melanoma, 1 nevus, 2 seborrheic keratosis.
        probabilities: (N, 3) class probabilities.
    """
    return float(np.mean([roc_auc_score(targets == k, probabilities[:, k]) for k in (0, 2)]))


def tables_from_probabilities(
    ids: list[str], targets: np.ndarray, probabilities: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the contents of ``results.csv`` and ``ground_truth.csv``.

    Args:
        ids: the pictures' paths below the repository's root.
        targets: (N,) class numbers.
        probabilities: (N, 3) class probabilities.
    """
    results = pd.DataFrame({"Id": ids, "task_1": probabilities[:, 0], "task_2": probabilities[:, 2]})
    truth = pd.DataFrame({"Id": ids, "task_1": (targets == 0).astype(int), "task_2": (targets == 2).astype(int)})
    return results, truth


def write_table(table: pd.DataFrame, file: str | os.PathLike) -> None:
    """Write ``results.csv`` or ``ground_truth.csv``, all or nothing, with six decimals."""
    file = Path(file)
    partial = file.with_name(file.name + ".part")
    table.to_csv(partial, index=False, float_format="%.6f", lineterminator="\n")
    os.replace(partial, file)


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold does to one binary question. Rates are in [0, 1], or NaN where nothing was predicted so.

    Attributes:
        threshold: predicted positive at or above it.
        matrix: (2, 2) counts; rows are the truth (negative, positive), columns the prediction.
        sensitivity: share of the positives that are found (recall).
        specificity: share of the negatives that are left alone.
        balanced_accuracy: mean of the two.
    """

    threshold: float
    matrix: np.ndarray
    sensitivity: float
    specificity: float
    balanced_accuracy: float


def operating_point(truth: np.ndarray, probabilities: np.ndarray, threshold: float) -> OperatingPoint:
    """Apply a threshold to probabilities.

    Args:
        truth: (N,) 0 or 1, both present.
        probabilities: (N,) in [0, 1].
        threshold: in [0, 1].
    """
    truth = np.asarray(truth).astype(int)
    matrix = confusion_matrix(truth, np.asarray(probabilities) >= threshold, labels=[0, 1])
    sensitivity = matrix[1, 1] / matrix[1].sum()
    specificity = matrix[0, 0] / matrix[0].sum()
    return OperatingPoint(threshold, matrix, sensitivity, specificity, (sensitivity + specificity) / 2)


def threshold_for_balance(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold with the best balanced accuracy (Youden, 1950, Cancer 3:32-35).

    Args:
        truth: (N,) 0 or 1, of pictures that are not those the threshold will be judged on.
        probabilities: (N,) in [0, 1].
    """
    false_positive_rate, true_positive_rate, thresholds = roc_curve(truth, probabilities)
    return float(min(thresholds[np.argmax(true_positive_rate - false_positive_rate)], 1.0))
