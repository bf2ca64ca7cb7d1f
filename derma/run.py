"""What surrounds a visible training loop: seeds, atomic checkpoints, history, TensorBoard, several processes."""

import hashlib
import json
import math
import os
import random
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, gather_object, set_seed
from pydantic import BaseModel
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from derma.backbones import best_precision
from derma.commands import progress
from derma.states import load_state, save_state

KEPT = 2  # checkpoints of a training: the last, and the one before in case the last is torn
GPU_SECONDS = 30  # between two checkpoints on a GPU, where writing one can take as long as an epoch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask cuDNN for algorithms that repeat.

    The same seed gives the same numbers on the same CPU with the same number of threads. Not across machines, and on a
    GPU only nearly: some of its kernels add in any order (https://docs.pytorch.org/docs/stable/notes/randomness.html).
    """
    set_seed(seed)
    torch.backends.cudnn.deterministic = True


def start(seed: int, precision: str) -> Accelerator:
    """Seed everything, find the device, and say in one line what this run computes with.

    Args:
        seed: of all random numbers.
        precision: ``"no"``, ``"bf16"``, ``"fp16"``, or ``"auto"`` for :func:`best_precision`.
    """
    if "ipykernel.kernelapp" not in sys.modules:  # figures go to files alone: no window holds the run up
        matplotlib.use("agg")
    seed_everything(seed)
    accelerator = Accelerator(
        mixed_precision=best_precision() if precision == "auto" else precision,
        cpu=not torch.accelerator.is_available(),  # explicit, for several processes on CPUs
        dataloader_config=DataLoaderConfiguration(non_blocking=torch.cuda.is_available()),  # copies while it computes
    )
    if not accelerator.is_main_process:  # of several processes, one prints
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    print(
        f"torch {torch.__version__}, {accelerator.num_processes} x {accelerator.device.type}, "
        f"{torch.get_num_threads()} threads, precision {accelerator.mixed_precision}"
    )
    return accelerator


def to_device(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return a network on the accelerator's device, channels last, ready to be trained by several processes."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # statistics of the batches of all GPUs together
    return network.to(accelerator.device, memory_format=torch.channels_last)


def share_buffers(network: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the first one's buffers: each has seen other batches' statistics."""
    if accelerator.num_processes > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def end_other_processes(accelerator: Accelerator) -> None:
    """End every process but the first, whose figures and files are enough."""
    if not accelerator.is_main_process:
        os._exit(0)  # ipython would turn sys.exit into a failure, for which torchrun ends the first one too


def cosine_with_warmup(optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule of all learning rates: they rise for ``warmup`` of the ``steps``, then follow a cosine to 0.

    A ValueError if there are no steps.
    """
    if steps == 0:
        raise ValueError("The training images do not fill one batch; set DERMA_BATCH_SIZE lower.")

    def factor(step: int) -> float:
        return min((step + 1) / warmup, (1 + math.cos(math.pi * step / steps)) / 2)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def get_rng_state() -> dict:
    """Return the states of the global random generators of Python, NumPy, torch and the GPUs."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
    return state | {"cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: dict) -> None:
    """Put back what :func:`get_rng_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def restore(part: object, state: dict) -> None:
    """Load a state into a network, an optimizer or whatever else has ``load_state_dict``.

    An optimizer's moments are laid out in memory as their parameters are: a fused step would silently pair the wrong
    numbers if one were channels-last and the other not.
    """
    part.load_state_dict(state)
    optimizer = getattr(part, "optimizer", part)  # Accelerate's wrapper holds torch's
    if isinstance(optimizer, torch.optim.Optimizer):
        for parameter, moments in optimizer.state.items():
            for name, value in moments.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Run:
    """One training: it goes on where an interrupted one stopped, and ends the same, byte for byte.

    After every epoch all that the rest depends on is saved as ``<name>-checkpoint-<digest>-<epoch>.safetensors``; on a
    GPU, after the first epoch that ends half a minute after the last checkpoint. The digest stands for the settings,
    so that a training with others neither continues nor overwrites these. A finished training leaves
    ``<folder>/<name>.safetensors``, and is loaded from there when it is run again.

    Args:
        folder, name: see above.
        settings: fields with ``exclude=True`` do not change what is trained, and may differ when it is resumed.
        accelerator: as :func:`start` returns it.
        about: all else that the training depends on, such as the names of its images; its ``repr`` counts.
        resume: False trains from the start.
        parts: ``network``, ``optimizer`` and ``scheduler``, prepared by the accelerator.

    Attributes:
        history: a row for each epoch: ``epoch``, what was logged, ``lr``, ``images_per_second``, ``seconds``.
    """

    def __init__(
        self, folder: Path, name: str, settings: BaseModel, accelerator: Accelerator, *, about, resume=True, **parts
    ):
        self.folder, self.name, self.accelerator, self.resume = Path(folder), name, accelerator, resume
        self.network = accelerator.unwrap_model(parts["network"], keep_torch_compile=False)
        self.parts = parts | {"network": self.network}
        if accelerator.scaler is not None:  # float16
            self.parts["scaler"] = accelerator.scaler
        self.settings = settings.model_dump(mode="json") | {
            "precision": accelerator.mixed_precision,
            "processes": accelerator.num_processes,
            "accumulation": accelerator.gradient_accumulation_steps,
            "code": hashlib.sha256(
                repr((about, self.network, list(self.network.state_dict()), parts["optimizer"])).encode()
            ).hexdigest()[:8],
        }
        self.digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        self._prefix, self._rows = f"{name}-checkpoint-{self.digest}", []
        # With accumulation or float16, a first step may be skipped, of which torch warns the scheduler.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)

    @property
    def history(self) -> pd.DataFrame:
        return pd.DataFrame(self._rows)

    def _checkpoints(self) -> list[Path]:
        """Return this training's checkpoints, the last first."""
        return sorted(self.folder.glob(f"{self._prefix}-*.safetensors"), reverse=True)

    def remaining(self, epochs: int) -> Iterator[int]:
        """Yield the epochs, from 1, that are not trained yet; after the last one, write the trained network."""
        if self.resume and self._load():
            return
        self.accelerator.wait_for_everyone()
        self._writer, self._saved = None, time.perf_counter()
        if self.accelerator.is_main_process:
            (self.folder / "metrics.json").unlink(missing_ok=True)  # written at the end of a run: it marks a whole one
            log = self.folder / "tensorboard" / f"{self.name}-{self.digest}"
            self._writer = SummaryWriter(log, purge_step=len(self._rows) + 1)
        for epoch in range(len(self._rows) + 1, epochs + 1):
            self._started, self._seen, self._logged = time.perf_counter(), 0, {}
            yield epoch
        share_buffers(self.network, self.accelerator)
        if self.accelerator.is_main_process:
            self._writer.close()
            self._save({"network": self.network.state_dict()}, f"{self.name}.safetensors")
            for file in self._checkpoints():
                file.unlink()
        self.accelerator.wait_for_everyone()

    def progress(self, loader: Iterable, epoch: int) -> Iterator:
        """Yield the batches of an epoch under a progress bar."""
        loader.set_epoch(epoch - 1)
        for batch in progress(loader, desc=f"epoch {epoch}", unit="batch"):
            self._seen += len(batch[0]) * self.accelerator.num_processes
            yield batch
            self._trained = time.perf_counter()

    def log(self, **values: torch.Tensor) -> None:
        """Note numbers of a batch; their means over the epoch go into the history."""
        for name, value in values.items():
            self._logged.setdefault(name, []).append(value.detach())  # stays on its device: nothing waits for it

    def end_epoch(self, **metrics: float) -> None:
        """Print and save an epoch, with further numbers; a ValueError if one that was logged is not finite."""
        seconds = time.perf_counter() - self._started
        logged = {name: torch.stack(values) for name, values in self._logged.items()}
        logged = {name: self.accelerator.reduce(values, "mean").tolist() for name, values in logged.items()}
        epoch, numbers = len(self._rows) + 1, {name: float(np.mean(values)) for name, values in logged.items()}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise ValueError(f"Epoch {epoch}: {name} is not finite; set the learning rates lower.")
        numbers |= metrics
        speed = self._seen / (self._trained - self._started)
        rate = {"lr": self.parts["scheduler"].get_last_lr()[0], "images_per_second": speed}
        self._rows.append({"epoch": epoch, **numbers, **rate, "seconds": seconds})
        rng = gather_object([get_rng_state()])  # of every process
        if self.accelerator.is_main_process:
            for name, value in self._rows[-1].items():
                self._writer.add_scalar(name, value, epoch)
            self._writer.flush()
            if self.accelerator.device.type == "cpu" or time.perf_counter() - self._saved > GPU_SECONDS:
                self._save_checkpoint(epoch, rng)
        print(f"epoch {epoch:3}: " + "  ".join(f"{k} {v:.4g}" for k, v in numbers.items()) + f"  {seconds:.0f} s")

    def _save(self, state: dict, name: str) -> Path:
        about = {"history": self._rows, "digest": self.digest, "settings": self.settings}
        save_state(state | about, self.folder / name)
        return self.folder / name

    def _save_checkpoint(self, epoch: int, rng: list[dict]) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()} | {"rng": rng}
        file = self._save(state, f"{self._prefix}-{epoch:05}.safetensors")
        self._saved = time.perf_counter()
        past = [old for old in self._checkpoints() if old <= file]  # later epochs are of a course that was given up
        for old in set(self._checkpoints()) - set(past[:KEPT]):
            old.unlink()

    def _load(self) -> bool:
        """Load the trained network of these settings, or the last whole checkpoint; return whether it is trained."""
        final = self.folder / f"{self.name}.safetensors"
        for file in [final, *self._checkpoints()] if final.exists() else self._checkpoints():
            try:
                state = load_state(file)
            except ValueError as error:
                print(error)
                continue
            if state["digest"] != self.digest:
                print(f"{file}: of other settings or code; it will be replaced.")
                continue
            for name in self.parts.keys() & state.keys():
                restore(self.parts[name], state[name])
            self._rows = state["history"]
            if file == final:
                print(f"{self.name}: trained before, and loaded; DERMA_RESUME=false trains it again.")
                return True
            set_rng_state(state["rng"][self.accelerator.process_index])
            print(f"{self.name}: resumed after epoch {len(self._rows)}.")
            return False
        return False
