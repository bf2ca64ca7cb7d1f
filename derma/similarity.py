"""Find the images whose vectors are nearest: exact search by the cosine of the angle between them."""

from __future__ import annotations

import numpy as np
import torch


class Neighbours:
    """Vectors to be searched, such as encodings or features, each with a name.

    Args:
        vectors: (N, D) numbers. Their mean is subtracted first: between vectors that all point the same way, cosines
            say little.
        names: N names, such as files, for messages.

    Raises:
        ValueError: a vector is not finite.
    """

    def __init__(self, vectors: np.ndarray, names: list[str]):
        vectors = np.asarray(vectors, np.float32)
        for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
            raise ValueError(f"{names[row]}: its vector (row {row}) is not finite; encode it again.")
        self._mean = vectors.mean(axis=0)
        self._unit = self._normalize(vectors)

    def _normalize(self, vectors: np.ndarray) -> torch.Tensor:
        centred = np.asarray(vectors, np.float32) - self._mean
        return torch.from_numpy(centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12))

    def nearest(self, queries: np.ndarray, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest vectors of each of (Q, D) queries, the nearest first; of equal ones, the first.

        Returns:
            Positions (Q, count), and cosines (Q, count) from -1 to 1; at most N.
        """
        return _highest(self._normalize(np.atleast_2d(queries)) @ self._unit.T, count)

    def nearest_others(self, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest of each vector of the data set except itself; as :meth:`nearest`, at most N - 1."""
        found = []
        for block, unit in enumerate(self._unit.split(1024)):
            cosines = unit @ self._unit.T
            cosines.diagonal(block * 1024).fill_(-torch.inf)
            found.append(_highest(cosines, min(count, len(self._unit) - 1)))
        return tuple(map(np.concatenate, zip(*found)))


def _highest(cosines: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and values of the highest in each row, of equal ones the first."""
    values, positions = cosines.topk(min(count, cosines.shape[1]), dim=1)
    values, positions = values.clamp(-1, 1).numpy(), positions.numpy()
    order = np.lexsort((positions, -values), axis=1)  # topk does not define the order of equal values
    return np.take_along_axis(positions, order, 1), np.take_along_axis(values, order, 1)
