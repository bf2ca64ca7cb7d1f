"""Write files all or nothing: a killed run leaves the old file or the new one, never half of one."""

from __future__ import annotations

import json
import math
import os
import subprocess
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path

import numpy as np
import pandas as pd


def write_bytes(content: bytes, file: str | os.PathLike) -> None:
    """Write a file in one step; its folder is made if it is missing."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".part")
    try:
        partial.write_bytes(content)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def write_text(text: str, file: str | os.PathLike) -> None:
    """Write a text as UTF-8, with the line ends that it has; bytes of file names that are not UTF-8 are escaped."""
    write_bytes(text.encode(errors="backslashreplace"), file)


def as_json(value: object) -> object:
    """Return a nested value as JSON can hold it: numbers that are not finite become null."""
    if is_dataclass(value):
        return as_json(asdict(value))
    if isinstance(value, pd.DataFrame):
        return as_json(value.to_dict(orient="records"))
    if isinstance(value, dict):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [as_json(each) for each in value]
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, Path):
        return value.as_posix()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(content: object, file: str | os.PathLike) -> None:
    """Write what :func:`as_json` returns, indented."""
    write_text(json.dumps(as_json(content), indent=2) + "\n", file)


def git_commit() -> str | None:
    """Return the commit of the code, with ``-dirty`` if files have changed since; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
