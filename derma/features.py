"""Features of images that a frozen network computes once, and that a head is then trained on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from derma.augmentation import views
from derma.classifier import Classifier
from derma.commands import progress
from derma.dataset import LesionImages, make_loader


class Features(Dataset):
    """Features of images, with their classes: in place of the images, wherever a frozen network would see those.

    Args:
        values: (N, views, width) float32.
        targets: (N,) class numbers.
        paths, ids: (N,) of the images.
    """

    def __init__(self, values: torch.Tensor, targets: np.ndarray, paths: list[str], ids: list[str]):
        self.values, self.targets, self.paths, self.ids = values, targets, paths, ids

    def subset(self, rows: np.ndarray) -> Features:
        """Return the features of the images at these places."""
        paths, ids = ([values[row] for row in rows] for values in (self.paths, self.ids))
        return Features(self.values[rows], self.targets[rows], paths, ids)

    def augmented(self, transform: Callable, seed: int) -> Features:
        """Return each view as an example of its own, (N * views, width); images that are computed once have no
        other augmentation than their views."""
        views = self.values.shape[1]
        paths, ids = ([value for value in values for _ in range(views)] for values in (self.paths, self.ids))
        return Features(self.values.flatten(0, 1), np.repeat(self.targets, views), paths, ids)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:  # DataLoader asks for batches
        rows = np.array(numbers) % len(self)
        return self.values[rows], torch.from_numpy(self.targets[rows])


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
        classifier: on its device.
        images: as uint8 tensors.
        tta: all eight views of :func:`derma.augmentation.views`, or one.
        accelerator: its processes share the work.
        folder: where the cache lies, as ``features-<digest>.safetensors``; delete it when you like.
        batch_size: images for each batch.

    Raises:
        ValueError: a feature is not finite.
    """
    stats = [Path(path).stat() for path in images.paths]  # changed images have other sizes and dates
    about = [[path, stat.st_size, stat.st_mtime] for path, stat in zip(images.paths, stats)]
    about += [images.size, tta, accelerator.mixed_precision, weights_digest(classifier.backbone)]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]
    file = Path(folder) / f"features-{digest}.safetensors"
    with suppress(SafetensorError, OSError), safe_open(file, "pt") as content:  # damaged, or not computed before
        return Features(content.get_tensor("features"), images.targets, images.paths, images.ids)
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
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".part")
        save_file({"features": values}, partial)
        os.replace(partial, file)
    accelerator.wait_for_everyone()
    return Features(values, images.targets, images.paths, images.ids)


def weights_digest(network: torch.nn.Module) -> str:
    """Return a hash of a network's weights and statistics: equal for equal ones, on whatever device they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
