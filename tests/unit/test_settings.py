import json
import sys
from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import BaseSettings

from derma import settings
from derma.settings import SettingsError, read_settings


class Settings(BaseSettings, env_prefix="DERMA_", allow_inf_nan=False):
    data: Path = Path("data/sample")
    epochs: int = Field(8, ge=1)
    model: str = "resnet50"


RECIPES = {"sample": {"epochs": 3, "model": "resnet18"}, "isic2017": {"epochs": 5}}


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    cell = {"cell_type": "code", "source": ["class Settings(BaseSettings):\n", '    perplexity: Literal["a", 5] = 5\n']}
    (tmp_path / "other.ipynb").write_text(json.dumps({"cells": [cell]}, indent=1))  # as Jupyter does
    (tmp_path / "._other.ipynb").write_bytes(b"\xff")
    monkeypatch.setattr(settings, "ROOT", tmp_path)


def test_the_environment_replaces_the_recipe_and_that_the_defaults(monkeypatch):
    assert dict(read_settings(Settings, RECIPES)) == {"data": Path("data/sample"), "epochs": 3, "model": "resnet18"}
    monkeypatch.setenv("DERMA_EPOCHS", "9")
    monkeypatch.setenv("DERMA_PERPLEXITY", "5")  # another notebook's
    assert read_settings(Settings, RECIPES).epochs == 9
    monkeypatch.setenv("DERMA_DATA", "elsewhere/isic2017/")
    assert dict(read_settings(Settings, RECIPES)) == {
        "data": Path("elsewhere/isic2017"), "epochs": 9, "model": "resnet50"
    }  # fmt: skip
    monkeypatch.setenv("DERMA_DATA", "mine")
    monkeypatch.delenv("DERMA_EPOCHS")
    assert read_settings(Settings, RECIPES).epochs == 8


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("DERMA_EPOCH", "3", "DERMA_EPOCH is not a setting; did you mean DERMA_EPOCHS?"),
        ("DERMA_EPOCHS", "few", "DERMA_EPOCHS is 'few': input should be a valid integer"),
    ],
)
def test_a_wrong_setting_is_one_sentence(monkeypatch, name, value, sentence):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        read_settings(Settings, RECIPES)
    assert str(error.value).startswith(sentence)


def test_in_jupyter_relative_folders_are_the_repositorys(monkeypatch, tmp_path):
    monkeypatch.chdir("/")
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", sys)
    read_settings(Settings, RECIPES)
    assert Path.cwd() == tmp_path  # which stands for the repository here
