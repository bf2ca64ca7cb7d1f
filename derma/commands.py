"""What the commands share: bad arguments end, like bad files, in one sentence and exit code 2."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line: the usage is for ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help.\n")


def whole_number(least: int, most: int = 2**31):
    """Return a type for ``add_argument``: a whole number from ``least`` to ``most``."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"'{text}' should be a whole number from {least:,} to {most:,}")
        return number

    return convert
