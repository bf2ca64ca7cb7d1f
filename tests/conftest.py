"""Images for the tests: drawn here, small, and never downloaded."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from derma.dataset import CLASSES
from derma.sample import draw_sample
from derma.tables import tables_from_probabilities, write_table

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """A data folder of 42 small images; tests must not change it."""
    folder = tmp_path_factory.mktemp("drawn") / "tiny"
    draw_sample(folder, {"train": (6, 12, 6), "valid": (2, 3, 2), "test": (3, 5, 3)}, size=(64, 48), seed=1)
    return folder


@pytest.fixture
def data_folder(drawn, tmp_path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(drawn, tmp_path / "tiny"))


def leave_held_out(folder: Path, seed: int, strength: float = 2, counts: tuple[int, int, int] = (20, 20, 20)) -> None:
    """Write held_out.csv as a run leaves it, with predictions that are the better the greater the strength."""
    targets = np.repeat([0, 1, 2], counts)
    ids = [f"data/isic2017/train/{CLASSES[k]}/{i}.jpg" for i, k in enumerate(targets)]
    logits = strength * np.eye(3)[targets] + np.random.default_rng(seed).normal(size=(len(targets), 3))
    write_table(tables_from_probabilities(ids, targets, softmax(logits, axis=1))[0], folder / "held_out.csv")
