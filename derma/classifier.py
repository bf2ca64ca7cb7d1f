"""The network of the classification notebook, which shows this source."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from derma.backbones import load_backbone, stage_features
from derma.dataset import CLASSES
from derma.states import load_state


class Classifier(nn.Module):
    """A backbone of timm with a linear head: images (N, 3, S, S), bytes, to logits (N, 3).

    Args:
        model, weights: of the backbone; see :func:`derma.backbones.load_backbone`.
        frozen: train the head alone. It then sees the features of all stages, standardised, and :meth:`forward` also
            takes such features, (N, width), in place of images, so that they need be computed only once.
    """

    def __init__(self, model: str, weights: str, frozen: bool):
        super().__init__()
        self.backbone, self.frozen = load_backbone(model, weights), frozen
        for name in ("mean", "std"):  # of the images that the backbone was trained on
            value = 255 * torch.tensor(self.backbone.pretrained_cfg[name])
            self.register_buffer(name, value.view(3, 1, 1))
        if frozen:
            self.backbone.requires_grad_(False)
            with torch.inference_mode():
                width = self.eval().features(torch.zeros(1, 3, 224, 224)).shape[1]
            self.head = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, len(CLASSES)))
        else:
            self.head = nn.Linear(self.backbone.num_features, len(CLASSES))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the head sees of images: (N, width)."""
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return (stage_features(self.backbone, images) if self.frozen else self.backbone(images)).float()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(inputs) if inputs.ndim == 4 else inputs)


def load_classifier(file: Path) -> Classifier:
    """Return a trained classifier from the file that a run has left, ``models/<run>/fold-<k>.safetensors``.

    Raises:
        ValueError: the file is missing, damaged, or does not hold a classifier.
    """
    state = load_state(file)
    try:
        classifier = Classifier(state["settings"]["model"], "none", state["settings"]["frozen"])
        classifier.load_state_dict(state["network"])
    except (KeyError, RuntimeError):  # settings, names of layers, or models of timm have changed
        raise ValueError(f"{file}: not a classifier, or of another version; train this run again.") from None
    return classifier
