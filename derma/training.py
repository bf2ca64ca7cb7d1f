"""What the notebooks' visible training loops need: seeds, pretrained weights, checkpoints, files never half written."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.error import URLError

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import fx, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import get_model_weights
from torchvision.ops import StochasticDepth


class WeightsError(RuntimeError):
    """Pretrained weights cannot be had or do not fit; the message is one sentence that says what to do."""


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask cuDNN for algorithms that repeat.

    The same seed gives the same numbers on the same CPU with the same number of threads. Not across machines, and on a
    GPU only nearly: some of its kernels add in any order (https://docs.pytorch.org/docs/stable/notes/randomness.html).
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for libraries that still draw from the global state
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _download_imagenet(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """Return torchvision's ImageNet weights for the model ``name``, downloaded once into ``folder``.

    IMAGENET1K_V1 where it exists: the newer recipe's label smoothing and mixing raise ImageNet accuracy but make
    features that transfer worse (Kornblith et al., 2021, https://arxiv.org/abs/2010.16402).
    """
    recipes = get_model_weights(name)
    weights = recipes.IMAGENET1K_V1 if hasattr(recipes, "IMAGENET1K_V1") else recipes.DEFAULT
    file = folder / PurePosixPath(weights.url).name
    try:
        # weights_only: torchvision ships .pth files; this reads tensors from them and executes nothing.
        state = weights.get_state_dict(model_dir=str(folder), progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if file.exists():
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise WeightsError(
                f"{file}: not the weights of {name}, or damaged ({reason}); delete it, or fetch {weights.url} again."
            ) from None
        raise WeightsError(
            f"The ImageNet weights of {name} could not be downloaded ({error}); fetch {weights.url} on a machine that "
            f"can, put it at {file}, and run again (or set DERMA_WEIGHTS to a .safetensors file, or to 'none')."
        ) from None
    # DenseNet's published files date from before a renaming: norm.1 is norm1 today.
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", key): value for key, value in state.items()}


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise WeightsError(
            f"{file}: no such weights file; set DERMA_WEIGHTS to a .safetensors file, to 'imagenet' or to 'none'."
        )
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file}: not a safetensors file ({error}); save the weights with safetensors.torch.save_file, since "
            "nothing is unpickled here."
        ) from None


def load_pretrained(model: nn.Module, name: str, weights: str, last_layer: str, folder: str | os.PathLike) -> None:
    """Fill a torchvision classifier with ImageNet weights, in place.

    Args:
        model: as made by ``torchvision.models.get_model(name)``.
        name: its torchvision name.
        weights: ``"imagenet"`` (torchvision's own, downloaded once), ``"none"`` (leave it random), or the path of a
            safetensors file with torchvision's names; half precision is cast to the model's.
        last_layer: name of the classifying layer, which the file may lack.
        folder: where downloads are kept.

    Raises:
        WeightsError: unreachable, unreadable, or of another model.
    """
    if weights == "none":
        return
    state = _download_imagenet(name, Path(folder)) if weights == "imagenet" else _read_weights(Path(weights))
    own = model.state_dict()
    optional = {key for key in own if key.startswith(f"{last_layer}.") or key.endswith("num_batches_tracked")}
    strange = sorted(key for key in state if key not in own or own[key].shape != state[key].shape)
    missing = sorted(set(own) - set(state) - optional)
    if strange or missing:
        raise WeightsError(
            f"{weights}: these are not the weights of torchvision's {name} ({len(missing)} of its tensors missing, "
            f"{len(strange)} unknown or of another shape, such as '{(missing + strange)[0]}'); "
            "set DERMA_MODEL and DERMA_WEIGHTS to the same model."
        )
    model.load_state_dict(state, strict=False)


def save_weights(model: nn.Module, file: str | os.PathLike, **about: object) -> None:
    """Write a model's parameters and buffers as safetensors, all or nothing.

    Args:
        model: any module; shared tensors are not supported.
        file: target; replaced in one step, so a killed run leaves the old file or the new one.
        about: anything JSON can hold, kept in the file's metadata under ``"about"``.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".part")
    state = {key: value.detach().contiguous().cpu() for key, value in model.state_dict().items()}
    save_file(state, partial, metadata={"about": json.dumps(about)})
    os.replace(partial, file)


def load_weights(model: nn.Module, file: str | os.PathLike) -> None:
    """Load what :func:`save_weights` wrote; names and shapes must fit exactly.

    Raises:
        WeightsError: the file is missing, torn, or of another model.
    """
    state = _read_weights(Path(file))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{file}: not the weights of this model ({str(error).splitlines()[-1].strip()}).") from None


def save_history(rows: list[dict], file: str | os.PathLike) -> None:
    """Write a table's rows as CSV, all or nothing."""
    file = Path(file)
    partial = file.with_name(file.name + ".part")
    pd.DataFrame(rows).to_csv(partial, index=False)
    os.replace(partial, file)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a model's parameters and buffers, to be updated after every step.

    After n updates the decay is ``min(decay, (1 + n) / (10 + n))``, so that the random beginning is soon forgotten
    (as in TensorFlow's ExponentialMovingAverage, https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage).

    Args:
        model: on its device, not yet wrapped or compiled.
        decay: share of the average that stays at each step, from 0 to below 1.
    """

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), 1 - now)
            else:  # batch normalisation counts its batches
                mean.copy_(value)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


class _Tracer(fx.Tracer):
    """Keeps whole what draws anew in each pass: a trace would hold what it drew, or whether it drew at all."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, StochasticDepth) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        # m.forward, and not what __call__ adds: hooks look at numbers, which a trace has none of.
        return super().call_module(m, m.forward, args, kwargs)


def cut(network: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """Cut a network into what comes before a layer and what comes from it on; both share its weights.

    So that the first part, kept as it is, need not be computed again in each epoch.

    Args:
        network: takes one tensor, and can be traced by torch.fx, as torchvision's classifiers can
            (https://docs.pytorch.org/docs/stable/fx.html).
        layer: its name among the network's modules, such as ``"layer4"`` or ``"features.denseblock4"``.

    Returns:
        Two modules: ``second(first(x))`` is ``network(x)``, and ``first(x)`` is one tensor. ``network.train()`` and
        ``network.eval()`` reach their layers, since these are the network's own.

    Raises:
        ValueError: there is no such layer, nothing comes before it, or more than one tensor passes that place.
    """
    nodes = list(_Tracer().trace(network).nodes)
    inside = [
        place
        for place, node in enumerate(nodes)
        if any(path == layer or path.startswith(f"{layer}.") for path in node.meta.get("nn_module_stack", ()))
    ]
    if not inside or inside[0] < 2:  # node 0 is the input
        names = ", ".join(name for name, _ in network.named_modules() if name and name.count(".") < 2)
        raise ValueError(f"There is no layer '{layer}' with others before it; the network has {names}.")
    before, after = nodes[: inside[0]], nodes[inside[0] :]
    passing = {source for node in after for source in node.all_input_nodes} & set(before)
    if len(passing) != 1:
        raise ValueError(f"At layer '{layer}' the network passes on {len(passing)} tensors and not one; name another.")
    (border,) = passing
    first, second = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in before:
        copies[node] = first.node_copy(node, copies.__getitem__)
    first.output(copies[border])
    copies = {border: second.placeholder("maps")}
    for node in after:
        copies[node] = second.node_copy(node, copies.__getitem__)
    return fx.GraphModule(network, first), fx.GraphModule(network, second)


# --- checkpoints -----------------------------------------------------------------------------------------------------

KEPT = 2  # checkpoints of a training: the last, and the one before in case the last is torn


def get_rng_state() -> dict:
    """Return the states of the global random generators of Python, NumPy, torch and the GPUs."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
    state["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return state | {"mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None}


def set_rng_state(state: dict) -> None:
    """Put back what :func:`get_rng_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if state["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def _take_apart(value: object, tensors: dict[str, torch.Tensor]) -> object:
    """Return a nested state as JSON can hold it; its tensors and arrays go into ``tensors``."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        key = f"{len(tensors):06}"
        tensors[key] = torch.as_tensor(value).detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"array" if isinstance(value, np.ndarray) else "tensor": key}
    if isinstance(value, dict):
        return {"dict": [[_take_apart(key, tensors), _take_apart(each, tensors)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_take_apart(each, tensors) for each in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _put_together(value: object, tensors: dict[str, torch.Tensor]) -> object:
    """Undo :func:`_take_apart`."""
    if not isinstance(value, dict):
        return value
    (kind, content), *_ = value.items()
    if kind == "dict":
        return {_put_together(key, tensors): _put_together(each, tensors) for key, each in content}
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_put_together(each, tensors) for each in content)
    return tensors[content].numpy() if kind == "array" else tensors[content]


def _digest(about: str, tensors: dict[str, torch.Tensor]) -> str:
    """Return a hash of all that a checkpoint holds: the lengths in its file would not show a page left unwritten."""
    digest = hashlib.sha256(about.encode())
    for key in sorted(tensors):
        digest.update(tensors[key].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def weights_digest(network: nn.Module) -> str:
    """Return a hash of a network's weights and statistics: equal for equal ones, on whatever device they lie."""
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    return _digest(json.dumps(sorted(state)), state)


def restore(part: object, state: dict) -> None:
    """Load a state into a network, an optimizer or whatever else has ``load_state_dict``.

    An optimizer's moments are laid out in memory as their parameters are: fused steps go through both side by side, and
    would pair the wrong numbers if one were channels-last and the other not, without a word.
    """
    part.load_state_dict(state)
    if isinstance(part, torch.optim.Optimizer):
        for parameter, moments in part.state.items():
            for name, value in moments.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Checkpoints:
    """The states of a training, one file for each epoch, of which the last two are kept.

    Files are safetensors, with JSON for what is no tensor: nothing is unpickled. Each is written all or nothing, and a
    damaged one is noticed and passed over for the one before. Their names hold a hash of the settings, so that a
    training with others neither continues nor overwrites them.

    Args:
        folder: where they lie.
        settings: all that the training's course depends on; anything JSON can hold.
        name: what the files' names begin with; trainings that go on side by side in one folder need a name each.

    Attributes:
        digest: eight letters that stand for the settings.
    """

    def __init__(self, folder: str | os.PathLike, settings: dict, name: str = "checkpoint"):
        self.folder, self.settings, self.name = Path(folder), json.loads(json.dumps(settings)), name
        self.digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        self._prefix = f"{name}-{self.digest}"

    def _files(self) -> list[Path]:
        """Return this training's checkpoints, the last first."""
        return sorted(self.folder.glob(f"{self._prefix}-*.safetensors"), reverse=True)

    def save(self, epoch: int, state: dict) -> None:
        """Write the state after an epoch, and remove those that are no longer needed.

        Args:
            epoch: how many are done.
            state: a nested dict of tensors, arrays, numbers, texts, lists and tuples.
        """
        tensors: dict[str, torch.Tensor] = {}
        about = json.dumps({"state": _take_apart(state, tensors), "settings": self.settings})
        file = self.folder / f"{self._prefix}-{epoch:05}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".part")
        save_file(tensors, partial, metadata={"about": about, "sha256": _digest(about, tensors)})
        os.replace(partial, file)
        past = [old for old in self._files() if old <= file]  # later epochs are of a course that was given up
        for old in set(self._files()) - set(past[:KEPT]):
            old.unlink()

    def load(self) -> tuple[dict | None, list[str]]:
        """Return the last state that is whole, or None, and sentences about what was passed over."""
        said = []
        for file in self._files():
            try:
                with safe_open(file, "pt") as content:
                    metadata = content.metadata() or {}
                    tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 - it is no dict
                if _digest(metadata["about"], tensors) != metadata["sha256"]:
                    raise ValueError("its contents have changed")
                if said:
                    said.append(f"{file}: whole, and used instead.")
                return _put_together(json.loads(metadata["about"])["state"], tensors), said
            except (SafetensorError, OSError, KeyError, ValueError, UnicodeDecodeError) as error:
                said.append(f"{file}: damaged ({error}).")
        if said:
            said.append("No checkpoint is whole; the training starts anew.")
        return None, said + self._differences()

    def _differences(self) -> list[str]:
        """Return a sentence about the newest checkpoint of other settings, if there is one."""
        others = sorted(
            self.folder.glob(f"{self.name}-{'?' * 8}-{'?' * 5}.safetensors"), key=lambda file: file.stat().st_mtime
        )
        for file in reversed([file for file in others if not file.name.startswith(self._prefix)]):
            try:
                with safe_open(file, "pt") as content:
                    settings = json.loads(content.metadata()["about"])["settings"]
            except (SafetensorError, OSError, KeyError, ValueError, TypeError):
                continue
            names = [name for name in {**settings, **self.settings} if settings.get(name) != self.settings.get(name)]
            changes = ", ".join(f"{name} was {settings.get(name)}, is {self.settings.get(name)}" for name in names)
            return [f"{file}: of other settings ({changes}); it is left as it is, and the training starts anew."]
        return []

    def remove(self) -> None:
        """Remove this training's checkpoints, once what it was for is on file."""
        for file in self._files():
            file.unlink()


def best_precision() -> str:
    """Return the arithmetic that is fast on this machine: ``"bf16"``, ``"fp16"`` or ``"no"`` (single precision).

    On a CPU, bfloat16 pays only with instructions made for it (AMX, or AVX-512's dot products of bfloat16, with which a
    ResNet50 trains 1.8 times as fast); without them it is emulated and slower.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # from torch 2.12 on
    made_for_it = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return "bf16" if not torch.backends.mps.is_available() and made_for_it else "no"
