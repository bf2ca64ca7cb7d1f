"""Nested states of networks, optimizers and random generators as safetensors: nothing is pickled."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from derma.files import write_bytes


def serialise(value: object, tensors: dict[str, torch.Tensor]) -> object:
    """Return a nested state as JSON can hold it; its tensors and arrays go into ``tensors``."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        key = f"{len(tensors):06}"
        tensors[key] = torch.as_tensor(value).detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"array" if isinstance(value, np.ndarray) else "tensor": key}
    if isinstance(value, dict):
        return {"dict": [[serialise(key, tensors), serialise(each, tensors)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [serialise(each, tensors) for each in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def deserialise(value: object, tensors: dict[str, torch.Tensor]) -> object:
    """Undo :func:`serialise`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {deserialise(key, tensors): deserialise(each, tensors) for key, each in content}
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](deserialise(each, tensors) for each in content)
    return tensors[content].numpy() if kind == "array" else tensors[content]


def _hash(about: str, tensors: dict[str, torch.Tensor]) -> str:
    """Return a hash of all that a file holds: the lengths in it would not show a page left unwritten."""
    digest = hashlib.sha256(about.encode())
    for key in sorted(tensors):
        digest.update(tensors[key].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def state_hash(state: dict) -> str:
    """Return a hash of a nested state: its names, numbers and tensors."""
    tensors: dict[str, torch.Tensor] = {}
    return _hash(json.dumps(serialise(state, tensors)), tensors)


def save_state(state: dict, file: Path) -> None:
    """Write a nested dict of tensors, arrays, numbers, texts, lists and tuples as safetensors, all or nothing."""
    tensors: dict[str, torch.Tensor] = {}
    about = json.dumps(serialise(state, tensors))
    write_bytes(save(tensors, metadata={"about": about, "sha256": _hash(about, tensors)}), file)


def load_state(file: Path) -> dict:
    """Return what :func:`save_state` wrote; a ValueError if the file is missing, torn or changed."""
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 - it is no dict
        if _hash(metadata["about"], tensors) != metadata["sha256"]:
            raise ValueError("its contents have changed")
        return deserialise(json.loads(metadata["about"]), tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: missing or damaged ({error}).") from None
