"""Backbones from timm: any of its models without the last layer, with pretrained weights from its hub or a file."""

import difflib
import logging
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from derma.states import load_state


class WeightsError(RuntimeError):
    """The model or its weights cannot be had, or do not fit; the message is one sentence that says what to do."""


def load_backbone(name: str, weights: str) -> nn.Module:
    """Return a model of timm without its last layer: normalised images (N, 3, S, S) to features (N, ``num_features``).

    Args:
        name: its name there, such as ``"resnet50.tv_in1k"``: https://huggingface.co/timm lists them.
        weights: ``"imagenet"`` (timm's own, downloaded once), ``"none"`` (random), the path of a safetensors file
            with timm's names (half precision is cast, and a last layer is passed over), or the folder of a run,
            ``models/<run>``, of which the first network's backbone is taken.

    Raises:
        WeightsError: there is no such model; or its weights are unreachable, unreadable or of another model.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would log each of its attempts
    try:
        backbone = timm.create_model(name, pretrained=weights == "imagenet", num_classes=0)
    except OSError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise WeightsError(
            f"The weights of {name} could not be downloaded ({reason}); set DERMA_WEIGHTS to a .safetensors "
            "file of this model, or to 'none'."
        ) from None
    except RuntimeError as error:
        if name in (models := timm.list_models()):
            raise WeightsError(f"{error} Set DERMA_WEIGHTS to a file of {name}, or to 'none'.") from None
        close = difflib.get_close_matches(name, models + timm.list_pretrained(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "https://huggingface.co/timm lists the models."
        raise WeightsError(f"timm cannot make '{name}' ({error}); set DERMA_MODEL: {hint}") from None
    if weights not in ("imagenet", "none"):
        _load_file(backbone, name, Path(weights))
    return backbone


def _load_file(backbone: nn.Module, name: str, file: Path) -> None:
    state, own = _read_file(file), backbone.state_dict()
    last = backbone.pretrained_cfg.get("classifier") or ()  # a name, or several, as "fc" or ("head", "head_dist")
    last = tuple(f"{each}." for each in ([last] if isinstance(last, str) else last))
    state = {key: value for key, value in state.items() if not key.startswith(last)}
    strange = sorted(key for key in state if key not in own or own[key].shape != state[key].shape)
    missing = sorted(key for key in set(own) - set(state) if not key.endswith("num_batches_tracked"))
    if strange or missing:
        raise WeightsError(
            f"{file}: not the weights of {name} ({len(missing)} tensors missing, {len(strange)} unknown or of another "
            f"shape, such as '{(missing + strange)[0]}'); set DERMA_MODEL and DERMA_WEIGHTS to the same model."
        )
    backbone.load_state_dict(state, strict=False)


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    """Return tensors by their names in timm, from a safetensors file or a run's folder."""
    if file.is_dir():
        try:
            network = load_state(file / "fold-0.safetensors")["network"]
        except (ValueError, KeyError):
            raise WeightsError(
                f"{file}: holds no trained network, fold-0.safetensors; set DERMA_WEIGHTS to the folder of a finished "
                "run, models/<run>."
            ) from None
        return {name.removeprefix("backbone."): each for name, each in network.items() if name.startswith("backbone.")}
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file}: no safetensors file ({error}); set DERMA_WEIGHTS to one, as safetensors.torch.save_file writes "
            "it, to a run's folder, 'imagenet' or 'none'."
        ) from None


def stage_features(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the features of all stages of a backbone: the mean and the maximum of each stage's maps.

    Of the last stage, the backbone's own output stands for the mean. Earlier stages see colours and textures, which
    tell lesions apart too (Evci et al., 2022, https://arxiv.org/abs/2201.03529, select among them).

    Returns:
        (N, width) for normalised images (N, 3, S, S); the width depends on the backbone alone.
    """
    final, stages = backbone.forward_intermediates(images, output_fmt="NCHW")
    means = [maps.mean((2, 3)) for maps in stages[:-1]]
    return torch.cat([*means, *(maps.amax((2, 3)) for maps in stages), backbone.forward_head(final)], dim=1)


def best_precision() -> str:
    """Return the arithmetic that is fast on this machine: ``"bf16"``, ``"fp16"`` or ``"no"`` (single precision).

    On a CPU, bfloat16 pays only with instructions made for it (AMX or AVX-512): a ResNet50 trains 1.8 times as fast.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # from torch 2.12 on
    made_for_it = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return "bf16" if not torch.backends.mps.is_available() and made_for_it else "no"
