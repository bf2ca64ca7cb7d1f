"""Read a notebook's settings: the environment over the data folder's recipe over the defaults."""

import difflib
import os
import re
import sys
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import BaseSettings

PREFIX = "DERMA_"
ROOT = Path(__file__).resolve().parent.parent


class SettingsError(ValueError):
    """A setting is unknown or has a value that it cannot have; the message is one sentence that says what to type."""


def settings_in(notebook: Path) -> set[str]:
    """Return the names of the settings that a notebook's class ``Settings`` declares."""
    # Not parsed: a stray or damaged notebook in the folder must not stop this one.
    text = notebook.read_text(encoding="utf-8", errors="replace")
    return set(re.findall(r'^ *"    (\w+): .+ = ', text, re.MULTILINE))


def read_settings(settings: type[BaseSettings], recipes: dict[str, dict]) -> BaseSettings:
    """Return the settings of a run. In Jupyter, the repository becomes the working directory, wherever that started.

    Args:
        settings: a class of settings with the prefix ``DERMA_``, one of which is ``data``, a folder.
        recipes: by the data folder's name, values that replace the defaults; the environment replaces both.

    Raises:
        SettingsError: a value is wrong, or the environment holds a ``DERMA_`` name that neither this notebook nor
            another one in the repository knows (`make run` hands the same environment to both).
    """
    if "ipykernel.kernelapp" in sys.modules:
        os.chdir(ROOT)  # relative folders are the repository's
    own = set(settings.model_fields)
    variables = {name.upper() for name, value in os.environ.items() if value}
    given = {name[len(PREFIX) :].lower() for name in variables if name.startswith(PREFIX)}
    for name in sorted(given - own - set().union(*map(settings_in, ROOT.glob("*.ipynb")))):
        close = difflib.get_close_matches(name, own, n=1, cutoff=0)[0]
        raise SettingsError(f"{PREFIX}{name.upper()} is not a setting; did you mean {PREFIX}{close.upper()}?")
    try:
        recipe = recipes.get(settings().data.absolute().name, {})
        return settings(**{name: value for name, value in recipe.items() if name not in given})
    except ValidationError as error:
        wrong = error.errors()[0]
        name, allowed = str(wrong["loc"][0]).upper(), wrong["msg"][0].lower() + wrong["msg"][1:]
        raise SettingsError(f"{PREFIX}{name} is '{wrong['input']}': {allowed}.") from None
