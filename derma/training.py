"""What the notebooks' visible training loops need: seeds, pretrained weights, and files that are never half written."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
from pathlib import Path, PurePosixPath
from urllib.error import URLError

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import get_model_weights


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


def best_precision() -> str:
    """Return the arithmetic that is fast on this machine: ``"bf16"``, ``"fp16"`` or ``"no"`` (single precision).

    On a CPU, bfloat16 pays only with matrix units made for it (AMX); without them it is emulated and slower.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # from torch 2.12 on
    return "bf16" if not torch.backends.mps.is_available() and capabilities.get("amx_bf16") else "no"
