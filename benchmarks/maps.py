"""Measure maps and searches: openTSNE against scikit-learn's t-SNE, and the nearest of 100,000 vectors.

    python benchmarks/maps.py models/isic2017/encodings.npz                # 2,750 encodings, and more drawn about them
    python benchmarks/maps.py models/isic2017/encodings.npz --slow         # scikit-learn at 50,000 too (half an hour)

Both get the same vectors, perplexity, seed and cores; openTSNE is called as the notebook calls it, scikit-learn as its
documentation does. The KL divergence of either map is computed here, by one and the same formula, from the exact
affinities.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from openTSNE import TSNE, affinity
from sklearn.manifold import TSNE as SlowTSNE

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from derma.similarity import Neighbours  # noqa: E402 - the package is not installed, it lies beside this folder

PERPLEXITY, SEED = 30, 0


def draw_about(vectors: np.ndarray, count: int) -> np.ndarray:
    """Return so many vectors (count, D): the given ones, and others between pairs of them."""
    rng = np.random.default_rng(SEED)
    pairs = vectors[rng.integers(len(vectors), size=(max(0, count - len(vectors)), 2))]
    weights = rng.uniform(0.7, 1, size=(len(pairs), 1))
    between = weights * pairs[:, 0] + (1 - weights) * pairs[:, 1]
    return np.concatenate([vectors[:count], between]).astype(np.float32)


def divergence(places: np.ndarray, joint) -> float:
    """Return the Kullback-Leibler divergence of a map's affinities from the vectors' (van der Maaten and Hinton, 2008).

    Args:
        places: (N, 2) a map.
        joint: (N, N) sparse affinities of the vectors, which add up to 1.
    """
    places = np.asarray(places, np.float64)
    total = -float(len(places))  # without the pairs of a point and itself
    for start in range(0, len(places), 500):
        squares = sum((places[start : start + 500, None, axis] - places[None, :, axis]) ** 2 for axis in (0, 1))
        total += (1 / (1 + squares)).sum()
    joint = joint.tocoo()
    near = 1 / (1 + ((places[joint.row] - places[joint.col]) ** 2).sum(1))
    kept = joint.data > 0
    return float((joint.data[kept] * np.log(joint.data[kept] / (near[kept] / total))).sum())


def compare_maps(vectors: np.ndarray, turns: int, slow: bool) -> None:
    """Print seconds and divergence of both for one set of vectors."""
    few = {"neighbors": "exact", "early_exaggeration_iter": 150, "n_iter": 400} if len(vectors) <= 5_000 else {}
    makers = {"openTSNE": lambda: TSNE(perplexity=PERPLEXITY, random_state=SEED, n_jobs=-1, **few).fit(vectors)}
    if slow:
        makers["scikit-learn"] = lambda: SlowTSNE(perplexity=PERPLEXITY, random_state=SEED, n_jobs=-1).fit_transform(
            vectors
        )
    joint = affinity.PerplexityBasedNN(vectors, perplexity=PERPLEXITY, method="exact", n_jobs=-1).P
    seconds, kl = {name: [] for name in makers}, {}
    for _ in range(turns):
        for name, make in makers.items():
            started = time.perf_counter()
            places = make()
            seconds[name].append(time.perf_counter() - started)
            kl[name] = divergence(places, joint)
    for name, taken in seconds.items():
        times = f", {min(seconds['scikit-learn']) / min(taken):.1f} times as fast as scikit-learn" if slow else ""
        print(f"{len(vectors):7,} vectors, {name:12}: {min(taken):7.1f} s, KL {kl[name]:.3f}{times}", flush=True)


def time_search(count: int = 100_000, width: int = 512, times: int = 50) -> None:
    """Print how long the ten nearest of one vector among so many take."""
    rng = np.random.default_rng(SEED)
    vectors = rng.standard_normal((count, width), dtype=np.float32)
    index = Neighbours(vectors, [str(number) for number in range(count)])
    taken = []
    for query in rng.standard_normal((times, width), dtype=np.float32):
        started = time.perf_counter()
        index.nearest(query, 10)
        taken.append(1000 * (time.perf_counter() - started))
    print(
        f"the ten nearest among {count:,} vectors of {width} numbers: {np.median(taken):.1f} ms, "
        f"at most {max(taken):.1f} ms of {times} searches"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure maps and searches.")
    parser.add_argument("encodings", type=Path, help="encodings.npz, as the notebook writes it")
    parser.add_argument("--slow", action="store_true", help="measure scikit-learn at 50,000 vectors too")
    options = parser.parse_args()
    if not options.encodings.is_file():
        parser.error(f"{options.encodings}: no such file; run dataset_structure_visualization.ipynb first")
    time_search()
    codes = np.load(options.encodings)["codes"]
    compare_maps(codes, turns=2, slow=True)
    compare_maps(draw_about(codes, 10_000), turns=1, slow=True)
    compare_maps(draw_about(codes, 50_000), turns=1, slow=options.slow)


if __name__ == "__main__":
    main()
