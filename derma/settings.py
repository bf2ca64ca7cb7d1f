"""The names of the notebooks' settings in the environment, so that a misspelt one is not ignored in silence."""

from __future__ import annotations

import os
from collections.abc import Iterable

PREFIX = "DERMA_"
# Of either notebook: `make run` hands the same environment to both. A test compares it with the notebooks.
EVERY = frozenset(
    {
        "ablation_epochs", "accumulate", "augmentation", "augmented_views", "average_head", "balance", "batch_size",
        "batchnorm", "blank", "channels", "code", "compile", "data", "drop_leaks", "dropout", "ema", "epochs",
        "evaluate", "extra", "folds", "frozen", "head_epochs", "head_layers", "image_size", "keep", "kept_epoch",
        "label_smoothing", "learning_rate", "lr_backbone", "lr_head", "model", "neighbours", "patience", "perplexity",
        "pooled_layers", "precision", "precompute", "results", "resume", "schedule", "seed", "seeds", "start_from_head",
        "structure", "test_size", "tta", "tuned_from", "warmup_epochs", "weight_decay", "weights", "workers",
    }
)  # fmt: skip


def check_names(own: Iterable[str]) -> set[str]:
    """Return the settings that the environment gives, as lower-case names without the prefix.

    Args:
        own: the names that the calling notebook has.

    Raises:
        ValueError: there is a ``DERMA_`` variable that neither notebook knows.
    """
    given = {name[len(PREFIX) :].lower() for name in os.environ if name.upper().startswith(PREFIX)}
    for name in sorted(given - EVERY):
        raise ValueError(f"{PREFIX}{name.upper()} is not a setting; there are {', '.join(own)}, after {PREFIX}.")
    return given & set(own)
