"""Images for the tests: drawn here, small, and never downloaded."""

import shutil
import sys
from pathlib import Path

import pytest

from derma.sample import draw_sample

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))


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
