"""Write files all or nothing: a killed run leaves the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_bytes(content: bytes, file: str | os.PathLike) -> None:
    """Write a file in one step; its folder is made if it is missing."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".part")
    partial.write_bytes(content)
    os.replace(partial, file)


def write_text(text: str, file: str | os.PathLike) -> None:
    """Write a text as UTF-8, with the line ends that it has."""
    write_bytes(text.encode(), file)


def write_json(content: object, file: str | os.PathLike) -> None:
    """Write what JSON can hold, indented."""
    write_text(json.dumps(content, indent=2) + "\n", file)
