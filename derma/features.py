"""Features of images that a frozen network computes once, and that a head is then fitted to."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from derma.augmentation import views
from derma.classifier import Classifier
from derma.commands import progress
from derma.dataset import LesionImages, make_loader
from derma.states import load_state, save_state, state_hash


class Features(Dataset):
    """Features of images (N, views, width), float32, with their classes: what a frozen network sees in their place."""

    def __init__(self, values: torch.Tensor, targets: np.ndarray, paths: list[str], ids: list[str]):
        self.values, self.targets, self.paths, self.ids = values, targets, paths, ids

    def subset(self, rows: np.ndarray) -> Features:
        """Return the features of the images at these places."""
        paths, ids = ([values[row] for row in rows] for values in (self.paths, self.ids))
        return Features(self.values[rows], self.targets[rows], paths, ids)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.values[row], int(self.targets[row])


@torch.inference_mode()
def compute_features(
    classifier: Classifier,
    images: LesionImages,
    tta: bool,
    accelerator: Accelerator,
    folder: str | os.PathLike,
    batch_size: int,
) -> Features:
    """Return the features of all views of images, computed once and cached in a folder.

    Args:
        classifier: on its device, its head not yet fitted.
        images: as uint8 tensors.
        tta: all eight views of :func:`derma.augmentation.views`, or one.
        accelerator: its processes share the work.
        folder: where the cache lies, as ``features-<digest>.safetensors``; delete it when you like.
        batch_size: images for each batch.
    """
    stats = [Path(path).stat() for path in images.paths]  # changed images have other sizes and dates
    about = [[path, stat.st_size, stat.st_mtime] for path, stat in zip(images.paths, stats)]
    about += [images.size, tta, accelerator.mixed_precision, state_hash(classifier.state_dict())]
    file = Path(folder) / f"features-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]}.safetensors"
    if file.exists():
        with suppress(ValueError):  # damaged
            return Features(load_state(file)["features"], images.targets, images.paths, images.ids)
    classifier.eval()
    loader = accelerator.prepare(make_loader(images, batch_size))
    parts = []
    for batch, _ in progress(loader, desc="features"):
        with accelerator.autocast():
            values = torch.stack([classifier.features(view) for view in views(batch, tta)], dim=1).float()
        parts.append(accelerator.gather_for_metrics(values).cpu())  # without the duplicates of the last batch
    accelerator.free_memory()  # the loader's processes end
    values = torch.cat(parts)
    if not torch.isfinite(values).all():
        raise ValueError("The features are not finite; set DERMA_PRECISION=no, or use other weights.")
    if accelerator.is_main_process:
        save_state({"features": values}, file)
    accelerator.wait_for_everyone()
    return Features(values, images.targets, images.paths, images.ids)
