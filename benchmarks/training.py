"""Compare the speed of the notebook's training on a CPU with a bare loop and with timm's data pipeline.

    python benchmarks/training.py    # five minutes on two idle cores

Each contestant trains a ResNet50 on 320 drawn images, with the same batch size and threads, in a process of its own.
They take turns, and the best epoch counts: in the first one a process gets its memory from the system, page by page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from derma.classifier import Classifier
from derma.execute import FOR_CPUS
from derma.sample import draw_sample

ROOT = Path(__file__).resolve().parent.parent
MODEL, SIZE, IMAGES, BATCH, EPOCHS, TURNS = "resnet50", 128, 320, 32, 4, 2


def notebook(data: Path) -> list[float]:
    """Execute the notebook's cells up to its training loop; return the images/s of each epoch."""
    text = (ROOT / "skin_lesion_classification.ipynb").read_text(encoding="utf-8")
    scope: dict = {"__name__": "__main__"}
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "history" not in scope:
            exec(compile(source, "a cell of the notebook", "exec", dont_inherit=True), scope)
    return scope["history"]["images_per_second"].tolist()


def train(loader) -> list[float]:
    """Train on batches of images, 0 to 255; return the images/s of each epoch."""
    network = Classifier(MODEL, "none", frozen=False).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    criterion, rates = torch.nn.CrossEntropyLoss(label_smoothing=0.1), []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        for batch, targets in loader:
            criterion(network(batch), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        rates.append(IMAGES / (time.perf_counter() - started))
    return rates


def bare(data: Path) -> list[float]:
    """Train on one batch that never changes: the most that the machine can do."""
    batch = torch.randint(256, (BATCH, 3, SIZE, SIZE)).to(torch.uint8), torch.arange(BATCH) % 3
    return train([batch] * (IMAGES // BATCH))


def timm(data: Path) -> list[float]:
    """Train on what timm's data pipeline gives, with its own augmentation of about the same strength."""
    loading = {"use_prefetcher": False, "num_workers": 2, "persistent_workers": True, "device": torch.device("cpu")}
    augmentation = {"is_training": True, "scale": (0.4, 1.0), "hflip": 0.5, "vflip": 0.5, "color_jitter": 0.25}
    images = {"input_size": (3, SIZE, SIZE), "batch_size": BATCH, "mean": (0, 0, 0), "std": (1 / 255,) * 3}
    return train(create_loader(create_dataset("", str(data), "train"), **images, **augmentation, **loading))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the speed of the notebook's training with others.")
    parser.add_argument("--alone", choices=["bare", "notebook", "timm"], help=argparse.SUPPRESS)
    if alone := parser.parse_args().alone:
        return print(json.dumps(globals()[alone](Path("data"))))
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        draw_sample(Path(scratch) / "data", {"train": (100, 120, 100), "valid": (1, 1, 1), "test": (1, 1, 1)})
        settings = {"data": "data", "model": MODEL, "weights": "none", "image_size": SIZE, "batch_size": BATCH}
        settings |= {"drop_leaks": "false", "epochs": EPOCHS, "precision": "no", "workers": 2}
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DERMA_")} | FOR_CPUS
        environment |= {f"DERMA_{key.upper()}": str(value) for key, value in settings.items()}
        environment |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "CUDA_VISIBLE_DEVICES": ""}
        for turn, name in enumerate(["bare", "notebook", "timm"] * TURNS):
            environment["DERMA_RESULTS"] = f"run-{turn}"
            command = [sys.executable, Path(__file__).resolve(), "--alone", name]
            printed = subprocess.check_output(command, cwd=scratch, env=environment, text=True)
            best[name] = max(best.get(name, 0), *json.loads(printed.splitlines()[-1]))
    for name, rate in best.items():
        print(f"{name:9} {rate:8.2f} images/s; the notebook is {best['notebook'] / rate:.2f} times as fast")


if __name__ == "__main__":
    main()
