"""Figures of the notebooks and of get_results.py."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from derma.scoring import Calibration, delong, roc_band
from derma.tables import TASKS, defined

# Okabe and Ito's colours, for colour-blind readers (https://jfly.uni-koeln.de/color/); the dashes are for print.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ({"color": "#0072B2", "linestyle": "-"}, {"color": "#D55E00", "linestyle": "--"})


def _save(figure: Figure, file: Path | None) -> Figure:
    if file is not None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        # No software or date in the file: the same numbers give the same bytes.
        figure.savefig(file, dpi=120, bbox_inches="tight", metadata={"Software": None})
    return figure


def roc(joined: pd.DataFrame, points: Sequence = (), file: Path | None = None) -> Figure:
    """Draw the defined categories' ROC curves, each with a 95 % bootstrap band, and melanoma's operating points.

    Args:
        joined: as ``derma.tables.join`` returns it.
        points: each a ``derma.scoring.OperatingPoint``.
    """
    figure, ax = plt.subplots(figsize=(5.2, 5.2), layout="constrained")
    for number in defined(joined):
        name, style = TASKS[f"task_{number}"], STYLES[number - 1]
        truth, probability = joined[f"true_{number}"], joined[f"task_{number}"]
        grid, low, high = roc_band(truth, probability)
        ax.fill_between(grid, low, high, color=style["color"], alpha=0.15, linewidth=0)
        false_positive_rate, true_positive_rate, _ = roc_curve(truth, probability)
        ax.plot(false_positive_rate, true_positive_rate, label=f"{name}: AUC {delong(truth, probability)}", **style)
    for point, marker in zip(points, "os^Dv", strict=False):
        place = f"sensitivity {point.goal:g}" if point.goal else f"or above {point.threshold:.3g}"
        ax.plot(
            1 - point.specificity.value, point.sensitivity.value, marker, color="black", markerfacecolor="white",
            linestyle="none", label=f"melanoma at {place}",
        )  # fmt: skip
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="chance")
    ax.set(title="ROC curves with 95 % bands", aspect="equal")
    ax.set(xlabel="False positive rate (1 - specificity)", ylabel="True positive rate (sensitivity)")
    ax.legend(loc="lower right", fontsize="small")
    return _save(figure, file)


def reliability(calibrations: dict[int, Calibration], file: Path | None = None, title: str = "Reliability") -> Figure:
    """Draw observed against predicted shares by category, with 95 % intervals, and how often each was predicted."""
    figure, (ax, below) = plt.subplots(2, 1, figsize=(5.2, 6), sharex=True, height_ratios=(3, 1), layout="constrained")
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="as predicted")
    for calibration, name, style, marker in zip(calibrations.values(), TASKS.values(), STYLES, "os", strict=True):
        if calibration is None:
            continue
        bins = calibration.bins
        errors = [bins["observed"] - bins["low"], bins["high"] - bins["observed"]]
        label = f"{name}: calibration error {calibration.error:.3f}, Brier {calibration.brier:.3f}"
        ax.errorbar(bins["predicted"], bins["observed"], errors, marker=marker, capsize=3, label=label, **style)
        below.plot(bins["predicted"], bins["count"], marker=marker, **style)
    ax.set(title=title, ylabel="Observed share", xlim=(0, 1), ylim=(0, 1))
    figure.legend(loc="outside lower center", fontsize="small")
    below.set(title="How often", xlabel="Predicted probability (mean of each bin)", ylabel="Images")
    return _save(figure, file)


def confusion(matrix: np.ndarray, labels: list[str], title: str, file: Path | None = None) -> Figure:
    """Draw a confusion matrix (K, K) of counts, rows for the truth, shaded by the shares of each true class."""
    rates = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, ax = plt.subplots(figsize=(2.2 + 1.2 * len(labels), 1.4 + 1.05 * len(labels)), layout="constrained")
    shading = ax.imshow(rates, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        dark = rates[row, column] > 0.5
        ax.text(
            column, row, f"{rates[row, column]:.1%}\n{count} of {matrix[row].sum()}",
            ha="center", va="center", color="white" if dark else "black",
        )  # fmt: skip
    broken = [label.replace(" ", "\n") for label in labels]
    ax.set_xticks(range(len(labels)), broken)
    ax.set_yticks(range(len(labels)), broken)
    ax.set(title=title, xlabel="Predicted", ylabel="True")
    figure.colorbar(shading, label="Share of the true class")
    return _save(figure, file)


def learning_curves(history: pd.DataFrame) -> Figure:
    """Draw a line for each fold: columns ``fold``, ``epoch``, ``train_loss``, ``valid_loss`` and ``valid_auc``."""
    figure, (losses, areas) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax, column, name, style in (
        (losses, "train_loss", "training (augmented)", STYLES[0]),
        (losses, "valid_loss", "validation", STYLES[1]),
        (areas, "valid_auc", "validation", STYLES[1]),
    ):
        for number, (_, rows) in enumerate(history.groupby("fold")):
            ax.plot(rows["epoch"], rows[column], marker=".", alpha=0.7, label=None if number else name, **style)
    losses.set(title="Loss", xlabel="Epoch", ylabel="Weighted cross-entropy (nats)")
    areas.set(title="Mean AUC on the validation images", xlabel="Epoch", ylabel="Mean AUC of the two categories")
    for ax in (losses, areas):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return figure


def grid(
    images: Sequence,
    titles: Sequence[str],
    columns: int = 4,
    title: str | None = None,
    overlays: Sequence[np.ndarray | None] | None = None,
) -> Figure:
    """Draw images in rows.

    Args:
        images: uint8 arrays (H, W, 3), PIL images, or uint8 tensors (3, H, W).
        titles: one for each image.
        overlays: heat maps (H, W) in [0, 1] to draw over the images, None for no map.
    """
    rows = -(-len(images) // columns)
    size = (1.25 * columns, 1.5 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, name, heat in zip(axes.flat, images, titles, overlays or [None] * len(images), strict=False):
        pixels = np.asarray(image)
        ax.imshow(pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels)
        if heat is not None:
            ax.imshow(heat, cmap="inferno", alpha=0.5, vmin=0, vmax=1)
        ax.set_title(name, fontsize="x-small")
    figure.suptitle(title)
    return figure


def scatter(ax: Axes, points: np.ndarray, values: np.ndarray, title: str) -> None:
    """Draw a map's points (N, 2), coloured by text with a legend, or by numbers with a colour bar."""
    ax.set(title=title, xlabel="First dimension", ylabel="Second dimension", xticks=[], yticks=[])
    if values.dtype.kind == "f":
        ax.figure.colorbar(ax.scatter(*points.T, c=values, s=6, cmap="cividis", linewidths=0), ax=ax)
        return
    for name, colour in zip(pd.unique(values), COLOURS, strict=False):
        ax.scatter(*points[values == name].T, s=6, color=colour, label=name, linewidths=0, alpha=0.7)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=3, fontsize="small", markerscale=2, frameon=False)
