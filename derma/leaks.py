"""Find images that show one photograph, across splits and within them: between training and test they inflate a score.

Images are given as in ``derma.dataset.LesionData.images``: a row each, with columns ``path`` and ``split``.
"""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from derma.dataset import SPLITS
from derma.duplicates import find_duplicates


def find_leaks(images: pd.DataFrame) -> pd.DataFrame:
    """Return :func:`derma.duplicates.find_duplicates` of the images, and ``splits``, such as ``"train, test"``."""
    split_of = dict(zip(images["path"], images["split"]))
    pairs = find_duplicates(list(images["path"]))
    pairs["splits"] = [
        ", ".join(sorted((split_of[a], split_of[b]), key=SPLITS.index)) for a, b in zip(pairs["first"], pairs["second"])
    ]
    return pairs


def training_leaks(images: pd.DataFrame, trained: tuple[str, ...]) -> pd.DataFrame:
    """Return the training images that show a photograph of a split that is not trained on.

    Returns:
        A row for each pair: ``train`` (a path), ``other`` (the path of the image with the same photograph) and
        ``split`` (of the other).
    """
    split_of = dict(zip(images["path"], images["split"]))
    remaining, found = list(split_of), []
    while True:
        pairs = find_duplicates(remaining, groups=[split_of[path] in trained for path in remaining])
        ordered = pairs["first"].map(split_of).isin(trained)
        train = pairs["first"].where(ordered, pairs["second"])
        other = pairs["second"].where(ordered, pairs["first"])
        found.append(pd.DataFrame({"train": train, "other": other, "split": other.map(split_of)}))
        if pairs.empty:
            return pd.concat(found, ignore_index=True)
        # Each image is compared with its nearest few only: what many copies hid is found among the others.
        copies = set(train)
        remaining = [path for path in remaining if path not in copies]


def photographs(paths: list[str]) -> np.ndarray:
    """Number the photographs that N images show, (N,): equal for images of one, also through a third image."""
    pairs = find_duplicates(paths)
    position = {path: number for number, path in enumerate(paths)}
    rows, columns = pairs["first"].map(position), pairs["second"].map(position)
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(paths), len(paths)))
    return connected_components(graph, directed=False)[1]
