"""Execute a notebook from top to bottom and show what it prints meanwhile.

    python -m derma.execute NOTEBOOK OUTPUT

A terminal shows all that cells print, a log whole lines and about once a minute a progress bar's state. The file holds
no progress bars, of which ``jupyter nbconvert --execute`` keeps every state.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from traitlets.config import Config

from derma.commands import Parser, run_main
from derma.files import write_text

# Set for the kernel's process, unless the environment has them.
FOR_CPUS = {
    # OpenMP's threads sleep while they wait: spinning, they slow torch down tenfold where anything else uses a core.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc keeps the memory of a step for the next. By default it returns large blocks, and the system zeroes new ones:
    # a fifth of a training's time on CPUs (gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html).
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
BAR_SECONDS = 55  # a log that has said nothing for this long gets a progress bar's state


class TalkingClient(NotebookClient):
    """An nbclient that also writes what the cells print to standard output."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.unfinished = ""  # a line that has not ended; for logs
        self.shown_at = time.monotonic()

    def process_message(self, msg, cell, cell_index):
        """Show a message of the kernel, then let nbclient keep it."""
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]
            print(text if sys.stdout.isatty() else self.for_log(text), end="", flush=True)
        return super().process_message(msg, cell, cell_index)

    def for_log(self, text: str) -> str:
        """Return the lines that ``text`` completes, or the state of a progress bar if the log was silent for long."""
        *ended, rest = (self.unfinished + text).split("\n")
        shown, now = [_last_state(line) for line in ended], time.monotonic()
        self.unfinished = rest[rest.rstrip("\r").rfind("\r") + 1 :]  # a carriage return replaces the line so far
        if not shown and "\r" in rest and now - self.shown_at >= BAR_SECONDS:
            shown = [_last_state(rest)]
        self.shown_at = now if shown else self.shown_at
        return "".join(line + "\n" for line in shown)


def _last_state(line: str) -> str:
    """Return what a line shows last: what follows its last carriage return, unless the line ends with that."""
    return line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() if "\r" in line else line


def execute(notebook: str | os.PathLike, output: str | os.PathLike) -> None:
    """Execute a notebook in its own folder and write ``output``, which may be the same file, all or nothing.

    Raises:
        CellExecutionError, DeadKernelError: a cell failed, or the kernel died; see ``output``'s ``*.failed.ipynb``.
        OSError: ``notebook`` cannot be read, or ``output`` not be written.
        ValueError, AttributeError: ``notebook`` is not a notebook.
    """
    notebook, output = Path(notebook), Path(output)
    for name, value in FOR_CPUS.items():
        os.environ.setdefault(name, value)
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    if output.is_dir():  # noticed now, not after an hour's run
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as sockets:
        # Sockets in a private folder instead of TCP: nobody else can listen, and Jupyter does not warn.
        ipc = {"transport": "ipc", "ip": str(Path(sockets) / "kernel")}
        config = Config({"KernelManager": ipc if os.name == "posix" else {}})
        resources = {"metadata": {"path": str(notebook.resolve().parent)}}
        client = TalkingClient(
            content, kernel_name="python3", coalesce_streams=True, resources=resources, config=config
        )
        try:
            client.execute()
        except (CellExecutionError, DeadKernelError):
            nbformat.write(content, output.with_suffix(".failed.ipynb"))
            raise
    for cell in (cell for cell in content.cells if cell.cell_type == "code"):
        for item in cell.outputs:
            if item.output_type == "stream":  # the blanks with which a finished progress bar erased itself
                item.text = re.sub(r"[^\n]*\r\Z", "", item.text)
        cell.outputs = [item for item in cell.outputs if item.get("text") != ""]
    write_text(nbformat.writes(content) + "\n", output)


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.execute``; returns the exit code, 2 if a cell failed."""
    parser = Parser(prog="python -m derma.execute", description="Execute a notebook and show its output.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    code = 2
    try:
        execute(options.notebook, options.output)
        return 0
    except CellExecutionError as error:
        failed = options.output.with_suffix(".failed.ipynb")
        problem = f"{error.ename}: {' '.join(error.evalue.split())}\nWhat was executed is in {failed}"
    except OSError as error:
        options.notebook = error.filename or options.notebook
        problem = f"{error.strerror}; name a notebook and a file to write."
    except KeyboardInterrupt:
        code, problem = 130, "stopped."
    except DeadKernelError:
        problem = "the kernel died, perhaps because memory ran out; try smaller batches or images."
    except (ValueError, AttributeError, nbformat.ValidationError):  # NotJSONError among them
        problem = "not a notebook; name an .ipynb file."
    print(f"{options.notebook}: {problem}", file=sys.stderr)
    return code


if __name__ == "__main__":
    run_main(main)
