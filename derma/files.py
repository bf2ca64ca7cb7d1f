"""Write files all or nothing: a killed run leaves the old file or the new one, never half of one."""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic_core import to_jsonable_python


def write_together(contents: dict[Path, bytes]) -> None:
    """Write several files, none of them if one finds no room; their folders are made if they are missing."""
    partial = {file.with_name(file.name + ".part"): file for file in contents}
    try:
        for part, file in partial.items():
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(contents[file])
        for part, file in partial.items():
            os.replace(part, file)
    finally:
        for part in partial:
            part.unlink(missing_ok=True)


def write_bytes(content: bytes, file: str | os.PathLike) -> None:
    """Write a file in one step; its folder is made if it is missing."""
    write_together({Path(file): content})


def write_text(text: str, file: str | os.PathLike) -> None:
    """Write a text as UTF-8, with the line ends that it has; bytes of file names that are not UTF-8 are escaped."""
    write_bytes(text.encode(errors="backslashreplace"), file)


def as_json(value: object) -> object:
    """Return a nested value as JSON can hold it: numbers that are not finite become null."""

    def plain(each: pd.DataFrame | np.ndarray | np.generic) -> list | int | float:
        return each.to_dict(orient="records") if isinstance(each, pd.DataFrame) else each.tolist()

    return to_jsonable_python(value, inf_nan_mode="null", fallback=plain)


def write_json(content: object, file: str | os.PathLike) -> None:
    """Write what :func:`as_json` returns, indented."""
    write_text(json.dumps(as_json(content), indent=2) + "\n", file)


def git_commit() -> str | None:
    """Return the commit of the code, with ``-dirty`` if files have changed since; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
