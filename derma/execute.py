"""Execute a notebook from top to bottom, showing on the terminal what it prints while it does.

    python -m derma.execute NOTEBOOK OUTPUT

``jupyter nbconvert --execute`` is silent until it is done, and keeps every state of a progress bar; this shows them on
the way and keeps none.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from traitlets.config import Config

from derma.commands import Parser

# What the kernel's process is started with, unless the environment says otherwise.
FOR_CPUS = {
    # OpenMP's threads sleep while they wait: spinning, they slow torch down tenfold where anything else uses a core.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc keeps the memory of a step for the next. By default it hands large blocks back to the system and gets them
    # anew, zeroed page by page, which takes a fifth of the time of a training on CPUs
    # (https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html).
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


class TalkingClient(NotebookClient):
    """An nbclient that also writes what the cells print to this process's output."""

    unfinished = ""  # of a line, where only whole lines are shown

    def process_message(self, msg, cell, cell_index):
        """Show a message of the kernel, then let nbclient keep it."""
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]
            if not sys.stdout.isatty():  # a log: no progress bars
                *lines, self.unfinished = (self.unfinished + text).split("\n")
                text = "".join(line.rsplit("\r", 1)[-1] + "\n" for line in lines)
            print(text, end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def execute(notebook: str | os.PathLike, output: str | os.PathLike) -> None:
    """Execute a notebook in its own folder and write it, all or nothing.

    Args:
        notebook: the file to execute.
        output: the file to write; may be the same.

    Raises:
        CellExecutionError, DeadKernelError: a cell failed, or the kernel died; the notebook as far as it came is beside
            ``output``, as ``*.failed.ipynb``.
        OSError: ``notebook`` cannot be read, or ``output`` not be written.
        ValueError, AttributeError: ``notebook`` is none.
    """
    notebook, output = Path(notebook), Path(output)
    for name, value in FOR_CPUS.items():
        os.environ.setdefault(name, value)
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    if output.is_dir():  # to be noticed now, and not after an hour's run
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as sockets:
        # Sockets in a folder of our own and not TCP: nobody else can listen, and it spares a warning.
        ipc = {"transport": "ipc", "ip": str(Path(sockets) / "kernel")}
        client = TalkingClient(
            content,
            timeout=None,
            kernel_name="python3",
            coalesce_streams=True,
            resources={"metadata": {"path": str(notebook.resolve().parent)}},
            config=Config({"KernelManager": ipc if os.name == "posix" else {}}),
        )
        try:
            client.execute()
        except (CellExecutionError, DeadKernelError):
            nbformat.write(content, output.with_suffix(".failed.ipynb"))
            raise
    for cell in content.cells:
        for item in cell.get("outputs", []):
            if item.output_type == "stream":  # the blanks with which a finished progress bar wiped itself out
                item.text = re.sub(r"[^\n]*\r\Z", "", item.text)
        if cell.cell_type == "code":
            cell.outputs = [item for item in cell.outputs if item.get("text") != ""]
    partial = output.with_name(output.name + ".part")
    nbformat.write(content, partial)
    os.replace(partial, output)


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.execute``; returns the exit code, 2 if a cell failed."""
    parser = Parser(prog="python -m derma.execute", description="Execute a notebook and show its output.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    try:
        execute(options.notebook, options.output)
    except CellExecutionError as error:
        print(f"{options.notebook}: {error.ename}: {' '.join(error.evalue.split())}", file=sys.stderr)
        print(f"The notebook as far as it came: {options.output.with_suffix('.failed.ipynb')}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}; name a notebook and a file to write.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{options.notebook}: stopped.", file=sys.stderr)
        return 130
    except DeadKernelError:
        print(f"{options.notebook}: the kernel died, perhaps for want of memory; see the notebook.", file=sys.stderr)
        return 2
    except (ValueError, AttributeError, nbformat.ValidationError):  # NotJSONError among them
        print(f"{options.notebook}: not a notebook; name an .ipynb file.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
