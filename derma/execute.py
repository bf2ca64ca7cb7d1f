"""Execute a notebook from top to bottom and show what it prints meanwhile.

    python -m derma.execute NOTEBOOK OUTPUT

A terminal shows all that cells print, a log whole lines and about once a minute a progress bar's state. The file holds
no progress bars, of which ``jupyter nbconvert --execute`` keeps every state.
"""

import asyncio
import errno
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import zmq
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
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
    # docs/speed.md has what that costs (gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html).
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
# By default ZeroMQ drops messages while a thousand wait to be sent or read, even the one that a cell has ended.
KEEP_ALL = f"""(lambda thread: thread.schedule(lambda: thread.socket.setsockopt({zmq.SNDHWM:d}, 0)))(
    get_ipython().kernel.iopub_thread)"""
BAR_SECONDS = 55  # a log that has said nothing for this long gets a progress bar's state


class TalkingClient(NotebookClient):
    """An nbclient that also writes what the cells print to standard output, and that a signal ends in order."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.unfinished: list[str] = []  # the pieces of a line that has not ended; for logs
        self.shown_at = time.monotonic()
        self.stopped_by: signal.Signals | None = None

    async def run(self, folder: Path) -> None:
        """Start a kernel, execute every cell, and end the kernel in any case; raises what :func:`execute` does.

        ``folder`` is for the kernel's sockets and for ``log``: what the kernel itself writes, not a cell.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        with suppress(RuntimeError):  # on Windows, and in other threads than the main one, signals do what they did
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop, number, task)
        # Sockets in a private folder instead of TCP: nobody else can listen, and Jupyter does not warn.
        ipc = {"transport": "ipc", "ip": str(folder / "kernel")} if os.name == "posix" else {}
        config = Config({"KernelManager": ipc | {"connection_file": str(folder / "kernel.json")}})
        # An installed kernelspec may name a Python that is gone; without any, the kernel's is the one that runs this.
        self.km = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), config=config)
        try:
            with (folder / "log").open("wb") as log:
                await self.async_start_new_kernel(stdout=log, stderr=log)
            await self.async_start_new_kernel_client()
            self.kc.iopub_channel.socket.setsockopt(zmq.RCVHWM, 0)
            await self.async_wait_for_reply(self.kc.execute(KEEP_ALL, silent=True))
            reply = await self.async_wait_for_reply(self.kc.kernel_info())
            self.nb.metadata["language_info"] = reply["content"]["language_info"]
            for index, cell in enumerate(self.nb.cells):
                await self.async_execute_cell(cell, index, execution_count=self.code_cells_executed + 1)
            self.set_widgets_metadata()
        finally:
            if self.km is not None:  # None if the kernel died at its start
                await self._async_cleanup_kernel()

    def stop(self, number: signal.Signals, task: asyncio.Task) -> None:
        """End a run, once: a second signal does not disturb the end of the kernel."""
        if self.stopped_by is None:
            self.stopped_by = number
            task.cancel()

    def process_message(self, msg, cell, cell_index):
        """Show a message of the kernel, then let nbclient keep it."""
        text = msg["content"]["text"] if msg["msg_type"] == "stream" else ""
        if not sys.stdout.isatty():
            cut = msg["content"].get("execution_state") == "idle" and _last_state("".join(self.unfinished))
            text = self.for_log("\n" if cut else text)  # the cell has ended within a line
        if text:
            print(text, end="", flush=True)
        return super().process_message(msg, cell, cell_index)

    def for_log(self, text: str) -> str:
        """Return the lines that ``text`` completes, or the state of a progress bar if the log was silent for long."""
        *ended, rest = text.split("\n")
        if ended:
            ended[0], self.unfinished = "".join([*self.unfinished, ended[0]]), []
        shown, now = [_last_state(line) for line in ended], time.monotonic()
        self.unfinished.append(rest)
        if "\r" in rest:
            rest = "".join(self.unfinished)
            self.unfinished = [rest[rest.rstrip("\r").rfind("\r") + 1 :]]  # it replaces the line so far
            if not shown and now - self.shown_at >= BAR_SECONDS:
                shown = [_last_state(rest)]
        self.shown_at = now if shown else self.shown_at
        return "".join(line + "\n" for line in shown)


def _last_state(line: str) -> str:
    """Return what a line shows last: what follows its last carriage return, unless the line ends with that."""
    return line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() if "\r" in line else line


def _write(content: nbformat.NotebookNode, file: Path) -> None:
    """Write a notebook; join the pieces of what a cell printed, and keep only the last states of progress bars."""
    for cell in (cell for cell in content.cells if cell.cell_type == "code"):
        # nbclient's coalesce_streams does the same in quadratic time.
        streams = [item for item in cell.outputs if item.output_type == "stream"]
        printed = {name: "".join(item.text for item in streams if item.name == name) for name in ("stdout", "stderr")}
        for item in streams:
            *lines, last = printed.pop(item.name, "").split("\n")
            lines.append("" if last.endswith("\r") else last)  # a finished progress bar erased itself
            item.text = "\n".join(map(_last_state, lines))
        cell.outputs = [item for item in cell.outputs if item.get("text") != ""]
    write_text(nbformat.writes(content) + "\n", file)


def execute(notebook: Path, output: Path) -> None:
    """Execute a notebook in its own folder and write ``output``, which may be the same file, all or nothing.

    Raises:
        CellExecutionError, DeadKernelError: a cell failed, or the kernel died; see ``output``'s ``*.failed.ipynb``.
        KeyboardInterrupt: SIGINT or SIGTERM, its argument, ended the run; see there too.
        OSError: ``notebook`` cannot be read, or ``output`` not be written.
        RuntimeError, NoSuchKernel: the kernel did not start.
        ValueError, AttributeError: ``notebook`` is not a notebook.
    """
    for name, value in FOR_CPUS.items():
        os.environ.setdefault(name, value)
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    if output.is_dir():  # noticed now, not after an hour's run
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    for cell in (cell for cell in content.cells if cell.cell_type == "code"):
        cell.outputs, cell.execution_count = [], None  # an earlier run's
    failed = output.with_suffix(".failed.ipynb")
    resources = {"metadata": {"path": str(notebook.resolve().parent)}}
    client = TalkingClient(content, iopub_timeout=3600, resources=resources)  # seconds to read what a cell has printed
    client.log.setLevel("CRITICAL")  # one sentence tells what it logs
    if os.name == "posix" and len(os.fsencode(tempfile.gettempdir())) > 60:
        # A socket's path has at most 103 bytes (macOS) or 107 (Linux): the kernel's, and those of DataLoader's workers.
        tempfile.tempdir = os.environ["TMPDIR"] = "/tmp"
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(client.run(Path(folder)))  # not client.execute: its own handlers of signals end in a traceback
        except BaseException as error:
            if client.code_cells_executed:
                _write(content, failed)
                print(f"What was executed is in {failed}", file=sys.stderr)
            if client.stopped_by:
                raise KeyboardInterrupt(client.stopped_by) from error
            if type(error) is RuntimeError:  # of a kernel that did not start, whose last line says why
                lines = (Path(folder) / "log").read_text(errors="replace").split("\n")
                error.args = (*filter(str.strip, [str(error), *lines]),)[-1:]
            raise
    _write(content, output)
    failed.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.execute``; returns the exit code: 2 if it failed, 128 + the number of a signal."""
    parser = Parser(prog="python -m derma.execute", description="Execute a notebook and show its output.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    code = 2
    try:
        execute(options.notebook, options.output)
        return 0
    except CellExecutionError as error:
        problem = f"{error.ename}: {' '.join(error.evalue.split())}"
    except OSError as error:
        options.notebook = error.filename or options.notebook
        problem = f"{error.strerror}; name a notebook and a file to write."
    except KeyboardInterrupt as error:
        number = signal.Signals(*(error.args or [signal.SIGINT]))
        code, problem = 128 + number, f"stopped by {number.name}."
    except DeadKernelError:
        problem = "the kernel died, perhaps because memory ran out; try smaller batches or images."
    except (RuntimeError, NoSuchKernel) as error:
        problem = f"the kernel did not start: {error}; try '{sys.executable} -m ipykernel --version' in its folder."
    except (ValueError, AttributeError, nbformat.ValidationError):  # NotJSONError among them
        problem = "not a notebook; name an .ipynb file."
    print(f"{options.notebook}: {problem}", file=sys.stderr)
    return code


if __name__ == "__main__":
    run_main(main)
