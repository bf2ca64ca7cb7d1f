"""What all commands share: a parser whose errors are one sentence, how they write and end, and progress bars."""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO

from tqdm import tqdm


class CommandError(Exception):
    """A command cannot go on; the message is one sentence that says what to do."""


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line: the usage is for ``--help``."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(?<=//)\S*@|\?\w+=\S*", "", message)  # an address without its secrets
        self.exit(2, f"{self.prog}: {message}; see --help.\n")


class _Output(io.FileIO):
    """A file that drops what cannot be written: a closed pipe or a full disk must not end an hour's training."""

    problem: OSError | None = None

    def write(self, content: memoryview) -> int | None:
        try:
            return super().write(content)
        except OSError as error:
            _Output.problem = error
            return len(content)


def _robust(stream: TextIO | None) -> TextIO:
    """Return a standard stream that escapes what its encoding lacks and, except in a terminal, writes an _Output."""
    if stream is None:  # closed by the caller
        return Path(os.devnull).open("w", encoding="utf-8", errors="backslashreplace")
    if not isinstance(stream, io.TextIOWrapper):  # as in Jupyter
        return stream
    stream.reconfigure(errors="backslashreplace")
    if stream.isatty():
        return stream
    file = io.BufferedWriter(_Output(stream.fileno(), "wb", closefd=False))
    at_once = stream.line_buffering or stream.write_through
    return io.TextIOWrapper(file, stream.encoding, "backslashreplace", line_buffering=at_once)


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run the ``main`` of a command and exit with its code; 130 if interrupted, 2 if its output could not be written.

    If the reader of a pipe, such as ``head``, has closed it, the work is finished quietly.
    """
    sys.stdout, sys.stderr = _robust(sys.stdout), _robust(sys.stderr)
    try:
        code = main()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    if _Output.problem and not isinstance(_Output.problem, BrokenPipeError):
        print(f"The output is incomplete: {_Output.problem.strerror}; redirect it to another place.", file=sys.stderr)
        code = code or 2
    sys.exit(code)


def whole_number(least: int, most: int):
    """Return a type for ``add_argument``: a whole number from ``least`` to ``most``."""

    def convert(text: str) -> int:
        with suppress(ValueError):
            if least <= int(text) <= most:
                return int(text)
        raise argparse.ArgumentTypeError(f"'{text}' should be a whole number from {least:,} to {most:,}")

    return convert


class _LogBar(tqdm):
    """A progress bar that prints whole lines."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None:
            print(self, flush=True)
        return True


def progress(iterable: Iterable | None = None, **options) -> tqdm:
    """Return a tqdm on standard output: live in a terminal or Jupyter, a line every 30 to 60 seconds in a log.

    Args:
        iterable: what to go through, an item of which should take less than 30 seconds; without it call ``update(n)``.
        options: ``total``, ``desc`` and ``unit``, as tqdm's.
    """
    if sys.stdout.isatty() or "ipykernel.kernelapp" in sys.modules:
        return tqdm(iterable, leave=False, file=sys.stdout, **options)
    # miniters: look at the clock after each item. The file only takes what tqdm erases lines with.
    log = {"file": io.StringIO(), "mininterval": 30, "miniters": 1, "delay": 30}
    return _LogBar(iterable, leave=False, **log, **options)
