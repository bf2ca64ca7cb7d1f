"""The network of the classification notebook, which shows ``Classifier``, and the head of a frozen run."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from derma.backbones import load_backbone, stage_features
from derma.dataset import CLASSES
from derma.states import load_state, state_hash


class KernelHead(nn.Module):
    """Kernel logistic regression: features (N, width) to logits (N, 3).

    A logit is a weighted sum of the similarities exp(-d / 2) to training images, where d is the mean squared difference
    of the standardised features (Zhu and Hastie, 2005, https://doi.org/10.1198/106186005X25619). This scale and the
    penalty (``C``) were chosen out of fold, for five backbones together (docs/experiments.md).
    """

    centres = 2500  # at most; from more training images, this many are drawn (Nyström's approximation)

    def __init__(self):
        super().__init__()
        for name in ("mean", "std", "similar"):  # the last: standardised features of the training images
            self.register_buffer(name, torch.zeros(1))
        # Parameters, though no gradient trains them: several processes refuse a network without any.
        self.weight, self.bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def _set(self, **values: torch.Tensor) -> None:
        for name, value in values.items():  # of whatever size they are fitted with
            setattr(self, name, nn.Parameter(value) if name in ("weight", "bias") else value)

    def fit(self, features: torch.Tensor, targets: np.ndarray) -> None:
        """Fit to the features (N, width) of training images, the classes weighted inversely to their frequency."""
        from sklearn.kernel_approximation import Nystroem  # takes a while, and a prediction does not need it
        from sklearn.linear_model import LogisticRegression

        mean, std = features.mean(0), features.std(0)
        std = torch.where(std < 1e-6, 1, std)  # some channels are always 0
        scaled = ((features - mean) / std).cpu().double().numpy()
        kernel = Nystroem(gamma=0.5 / scaled.shape[1], n_components=min(len(scaled), self.centres), random_state=0)
        logistic = LogisticRegression(C=30, class_weight="balanced", max_iter=1000)
        logistic.fit(kernel.fit_transform(scaled), targets)
        values = kernel.components_, logistic.coef_ @ kernel.normalization_, logistic.intercept_
        similar, weight, bias = (torch.from_numpy(each).to(features.device, features.dtype) for each in values)
        self._set(mean=mean, std=std, similar=similar, weight=weight, bias=bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):  # the weights are large, and nearly cancel
            scaled = (features - self.mean) / self.std
            squares = scaled.square().sum(1, keepdim=True) + self.similar.square().sum(1)
            distances = (squares - 2 * scaled @ self.similar.T) / scaled.shape[1]
            return torch.exp(-0.5 * distances) @ self.weight.T + self.bias

    def _load_from_state_dict(self, state: dict, prefix: str, *arguments: object) -> None:
        names = [*self._buffers, *self._parameters]
        self._set(**{name: torch.empty_like(state[prefix + name], device=self.mean.device) for name in names})
        super()._load_from_state_dict(state, prefix, *arguments)


class Classifier(nn.Module):
    """A backbone of timm with a head: images (N, 3, S, S), bytes, to logits (N, 3).

    Args:
        model, weights: of the backbone; see :func:`derma.backbones.load_backbone`.
        frozen: fit only the head, a :class:`KernelHead` on the features of all stages; else it is linear.
            :meth:`forward` then also takes such features, (N, width), in place of images: they are computed only once.
    """

    def __init__(self, model: str, weights: str, frozen: bool):
        super().__init__()
        self.backbone, self.frozen = load_backbone(model, weights), frozen
        self.start = weights if weights == "none" else state_hash(self.backbone.state_dict())
        for name in ("mean", "std"):  # of the images that the backbone was trained on
            value = 255 * torch.tensor(self.backbone.pretrained_cfg[name])
            self.register_buffer(name, value.view(3, 1, 1))
        if frozen:
            self.backbone.requires_grad_(False)
        width = getattr(self.backbone, "head_hidden_size", self.backbone.num_features)  # some widen the last stage
        self.head = KernelHead() if frozen else nn.Linear(width, len(CLASSES))

    def extra_repr(self) -> str:  # for Run: a network that started from other weights is not resumed
        return f"start={self.start}"

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
