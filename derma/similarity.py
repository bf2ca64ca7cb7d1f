"""Find the pictures whose vectors are nearest: exact search by the cosine of the angle between them."""

from __future__ import annotations

import numpy as np
import torch


class Neighbours:
    """Vectors to be searched, such as encodings or features, each with a name.

    Exact, and no index: a product with 100,000 vectors of 512 numbers takes a few tens of milliseconds, where an
    approximate one would have to be built, tuned and trusted.

    Args:
        vectors: (N, D) finite numbers; they are centred on their mean first, since the cosine of vectors that all point
            the same way says little.
        names: N names, such as files.

    Raises:
        ValueError: the two do not fit, or a vector is not finite.
    """

    def __init__(self, vectors: np.ndarray, names: list[str]):
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or len(vectors) != len(names):
            raise ValueError(f"{len(names):,} names for vectors of shape {vectors.shape}; give each row a name.")
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise ValueError(f"{names[row]}: its vector (row {row}) is not finite; encode it again.")
        self.names = list(names)
        self._mean = vectors.mean(axis=0)
        self._unit = torch.from_numpy(self._normalize(vectors))

    def _normalize(self, vectors: np.ndarray) -> np.ndarray:
        centred = np.asarray(vectors, np.float32) - self._mean
        return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)

    def __len__(self) -> int:
        return len(self.names)

    def nearest(self, queries: np.ndarray, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest vectors of each query, the nearest first; of equals, the one that comes first.

        Args:
            queries: (Q, D) vectors, of the data set or new.
            count: how many; at most N.

        Returns:
            Positions (Q, count), and cosines (Q, count) from -1 to 1.
        """
        return self._search(self._normalize(np.atleast_2d(queries)), min(count, len(self)))

    def nearest_others(self, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest of each vector of the data set but itself; as :meth:`nearest`, at most N - 1."""
        count = min(count, len(self) - 1)
        positions, cosines = np.empty((len(self), count), int), np.empty((len(self), count), np.float32)
        for start in range(0, len(self), 1024):
            rows = np.arange(start, min(start + 1024, len(self)))
            found, values = self._search(self._unit[rows].numpy(), count, leave_out=rows)
            positions[rows], cosines[rows] = found, values
        return positions, cosines

    @torch.inference_mode()
    def _search(
        self, unit: np.ndarray, count: int, leave_out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        cosines = torch.from_numpy(np.ascontiguousarray(unit)) @ self._unit.T
        if leave_out is not None:
            cosines[torch.arange(len(unit)), torch.from_numpy(leave_out)] = -torch.inf
        values, positions = cosines.topk(count, dim=1)
        values, positions = values.clamp(-1, 1).numpy(), positions.numpy()
        order = np.lexsort((positions, -values), axis=1)  # topk leaves the order of equals open
        return np.take_along_axis(positions, order, 1), np.take_along_axis(values, order, 1)


def shared_class(neighbours: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return for each picture the share of its neighbours that are of its class, from 0 to 1.

    Args:
        neighbours: (N, count) positions, as :meth:`Neighbours.nearest_others` returns them.
        targets: (N,) classes.
    """
    targets = np.asarray(targets)
    return (targets[neighbours] == targets[:, None]).mean(axis=1)
