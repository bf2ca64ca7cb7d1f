"""What all commands share: a parser whose errors are one sentence with exit code 2, and progress bars."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import NoReturn

from tqdm import tqdm


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line: the usage is for ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help.\n")


def whole_number(least: int, most: int = 2**31):
    """Return a type for ``add_argument``: a whole number from ``least`` to ``most``."""

    def convert(text: str) -> int:
        with suppress(ValueError):
            if least <= int(text) <= most:
                return int(text)
        raise argparse.ArgumentTypeError(f"'{text}' should be a whole number from {least:,} to {most:,}")

    return convert


class _LogBar(tqdm):
    """A progress bar that prints a whole line every 30 seconds, and none if all is done by then."""

    def __init__(self, *arguments, **options):
        # miniters: look at the clock after each item. The file only takes what tqdm erases lines with.
        super().__init__(*arguments, **options, file=io.StringIO(), mininterval=30, miniters=1, delay=30)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None:
            print(self, flush=True)
        return True

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        super().set_postfix_str(s, refresh=False)  # printed with the next line


def progress(iterable: Iterable | None = None, **options) -> tqdm:
    """Return a tqdm on standard output: live in a terminal or Jupyter, a line every 30 to 60 seconds in a log.

    Args:
        iterable: what to go through, an item of which should take less than 30 seconds; without it call ``update(n)``.
        options: ``total``, ``desc`` and ``unit``, as tqdm's.
    """
    if sys.stdout.isatty() or "ipykernel" in sys.modules:
        return tqdm(iterable, leave=False, file=sys.stdout, **options)
    return _LogBar(iterable, leave=False, **options)
