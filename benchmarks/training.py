"""Measure training: the notebook's step against a bare one, against fastai and timm, and against the way of 2022.

    python -m pip install --target OTHERS --no-deps fastai fastcore fasttransform fastdownload fastprogress \\
        plum-dispatch beartype cloudpickle timm
    python benchmarks/training.py DATA ORIGINALS --others OTHERS

Every figure is images/s of training, of one model, on the same pictures, with the same batch size, threads and
arithmetic; each of the contestants is a process of its own, and they take turns, so that what else the machine does
hits all of them. Each trains four epochs a turn, and its best one counts: in the first, and in the first after a
validation, a process on CPUs gets most of its memory from the system, page by page.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from derma.execute import FOR_CPUS  # noqa: E402 - the package is not installed, it lies beside this folder

NOTEBOOK = ROOT / "skin_lesion_classification.ipynb"
LAST_CELL = "allruns1"  # the cell after which the networks are trained
BATCH, CLASSES, EPOCHS = 32, 3, 4


# --- the contestants, each called in a process of its own --------------------------------------------------------


def notebook(options) -> dict:
    """Execute the notebook's own cells to the end of the training; its settings are in the environment."""
    scope, seconds = {"__name__": "__main__"}, {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            started = time.perf_counter()
            code = compile("".join(cell["source"]), cell["id"], "exec", dont_inherit=True)
            exec(code, scope)
            seconds[cell["id"]] = time.perf_counter() - started
            if cell["id"] == LAST_CELL:
                break
    rates = scope["history"]["images_per_second"]
    return {
        "first": rates.iloc[0], "later": rates.max(), "seconds": scope["history"]["seconds"].sum(),
        "encoding": seconds["b9970327"], "training": seconds[LAST_CELL],
    }  # fmt: skip


def _network(options):
    """Return the same network as the notebook's, its optimizer and its loss, without the notebook."""
    import torch
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.get_model(options.model)
    network.fc = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(network.fc.in_features, CLASSES))
    network = network.to(memory_format=torch.channels_last).train()
    # As in the notebook, where one is bare; the others take the default, as who follows their documentation does.
    fused = options.alone == "bare"
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, fused=fused)
    return torch, network, optimizer, torch.nn.CrossEntropyLoss(label_smoothing=0.1)


def bare(options) -> dict:
    """Forward, backward and step on one batch that never changes: what the machine can do."""
    torch, network, optimizer, criterion = _network(options)
    pictures = torch.rand(BATCH, 3, options.size, options.size).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(BATCH) % CLASSES
    seconds = []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        for _ in range(options.pictures // BATCH):
            criterion(network(pictures), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return {"later": options.pictures // BATCH * BATCH / min(seconds)}


def fastai(options) -> dict:
    """Train the same with fastai: squared pictures, its batch augmentation, its channels-last callback."""
    import torch
    from fastai.callback.channelslast import ChannelsLast
    from fastai.vision.all import (
        Callback,
        ImageDataLoaders,
        Learner,
        Normalize,
        Resize,
        ResizeMethod,
        aug_transforms,
        imagenet_stats,
    )

    seconds = []

    class Clock(Callback):
        def before_train(self):
            self.started = time.perf_counter()

        def after_train(self):
            seconds.append(time.perf_counter() - self.started)

    changes = aug_transforms(flip_vert=True, max_rotate=180, max_zoom=1.5, max_lighting=0.25, max_warp=0.1)
    loaders = ImageDataLoaders.from_folder(
        options.data, train="train", valid="valid", bs=BATCH, num_workers=2, device=torch.device("cpu"),
        item_tfms=Resize(options.size, method=ResizeMethod.Squish),
        batch_tfms=[*changes, Normalize.from_stats(*imagenet_stats)],
    )  # fmt: skip
    network = _network(options)[1]
    learner = Learner(loaders, network, loss_func=torch.nn.CrossEntropyLoss(label_smoothing=0.1), cbs=[ChannelsLast()])
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(EPOCHS, cbs=[Clock()])
    return {"later": options.pictures // BATCH * BATCH / min(seconds)}


def timm(options) -> dict:
    """Train the same with timm's data pipeline and the loop of its training script."""
    from timm.data import create_dataset, create_loader

    torch, network, optimizer, criterion = _network(options)
    dataset = create_dataset("", root=str(options.data), split="train")
    loader = create_loader(
        dataset, (3, options.size, options.size), BATCH, is_training=True, use_prefetcher=False, num_workers=2,
        scale=(0.4, 1.0), hflip=0.5, vflip=0.5, color_jitter=0.25, persistent_workers=True, device=torch.device("cpu"),
    )  # fmt: skip
    rates = []
    for _ in range(EPOCHS):
        started, seen = time.perf_counter(), 0
        for pictures, targets in loader:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
            loss = criterion(network(pictures), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(targets)
        rates.append(seen / (time.perf_counter() - started))
    return {"later": max(rates)}


def old(options) -> dict:
    """The way of 2022: the originals decoded, rotated and resized at full size, in this process, batch by batch."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Normalize, RandomRotation, Resize, ToTensor

    torch, network, optimizer, criterion = _network(options)
    steps = [
        RandomRotation(180),
        Resize(options.size),
        CenterCrop(options.size),
        ToTensor(),
        Normalize(*[(0.5,) * 3] * 2),
    ]
    dataset = ImageFolder(options.originals, Compose(steps))
    loader = DataLoader(dataset, batch_size=8, shuffle=True)
    rates = {}
    for kind in ("later", "frozen"):
        best = 0
        for _ in range(2):
            started = time.perf_counter()
            for pictures, targets in loader:
                with torch.set_grad_enabled(kind == "later"):
                    loss = criterion(network(pictures), targets)
                if kind == "later":
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
            best = max(best, len(dataset) / (time.perf_counter() - started))
        rates[kind] = best
    return rates


# --- the contest -----------------------------------------------------------------------------------------------------


def small_folder(data: Path, out: Path, pictures: int) -> None:
    """Link evenly chosen pictures of a data folder: so many for training, and a few others."""
    for split, count in (("train", pictures), ("valid", 48), ("test", 48)):
        files = sorted(path for path in (data / split).rglob("*.jpg") if path.is_file())
        if len(files) < count:
            raise SystemExit(f"{data / split}: {len(files)} pictures, {count} are needed; name another folder.")
        for number in range(count):
            file = files[number * len(files) // count]
            link = out / split / file.parent.name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())


def take_turn(contestant: str, options, scratch: Path, **settings) -> dict:
    """Run one contestant in a process of its own; returns what it measured."""
    common = {
        "data": scratch / "data", "model": options.model, "weights": "none", "image_size": options.size,
        "batch_size": BATCH, "epochs": EPOCHS, "precision": "no", "tta": "false", "drop_leaks": "false",
        "resume": "false", "workers": 2,
    }  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DERMA_")}
    environment |= {f"DERMA_{key.upper()}": str(value) for key, value in (common | settings).items()}
    environment |= {"TQDM_DISABLE": "1", "MPLBACKEND": "agg", **FOR_CPUS}  # for all of them
    if settings.get("plain"):
        environment = {key: value for key, value in environment.items() if key not in FOR_CPUS}
    paths = [str(ROOT)] + ([str(options.others)] if contestant in ("fastai", "timm") else [])
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    arguments = [str(scratch / "data"), str(options.originals), "--model", options.model, "--size", str(options.size)]
    arguments += ["--pictures", str(options.pictures), "--alone", contestant]
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contestant} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the notebook's training against others.")
    parser.add_argument("data", type=Path, help="a data folder of small pictures")
    parser.add_argument("originals", type=Path, help="class folders of large pictures")
    parser.add_argument("--others", type=Path, help="where fastai and timm are installed; without it they are left out")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--pictures", type=int, default=320, help="for training; a multiple of 32")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(globals()[options.alone](options)))
        return

    for folder in filter(None, (options.data / "train", options.originals, options.others)):
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    names = ["bare", "notebook", "old"] + (["fastai", "timm"] if options.others else [])
    options.others = options.others and options.others.resolve()
    options.originals = options.originals.resolve()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        small_folder(options.data.resolve(), scratch / "data", options.pictures)
        turns = {name: [] for name in names}
        for turn in range(options.turns):
            for name in names:
                turns[name].append(take_turn(name, options, scratch))
                print(f"turn {turn + 1}, {name}: {turns[name][-1]['later']:.2f} images/s", file=sys.stderr, flush=True)
        plain = take_turn("bare", options, scratch, plain="true")["later"]
        head = take_turn("notebook", options, scratch, frozen="true", epochs=20, patience=20)

    best = {name: max(turn["later"] for turn in turns[name]) for name in names}
    print(f"{options.model}, {options.size} px, batches of {BATCH}, {options.pictures} pictures, images/s of training:")
    for name in names:
        print(f"  {name:9} {best[name]:8.2f}   {best['notebook'] / best[name]:6.2f} times as fast is the notebook")
    print(f"  bare, without derma.execute's environment: {plain:.2f}")
    first = max(turn["first"] for turn in turns["notebook"])
    ours = 2000 / first + 19 * 2000 / best["notebook"]
    print(f"20 epochs of 2,000 pictures: {20 * 2000 / best['old'] / 3600:.2f} h the old way, {ours / 3600:.2f} h ours")
    frozen = max(turn["frozen"] for turn in turns["old"])
    theirs = 20 * options.pictures / frozen
    here = head["encoding"] + head["training"]
    print(
        f"frozen backbone, 20 epochs of {options.pictures} pictures: {theirs:.0f} s the old way ({frozen:.1f}/s), "
        f"{here:.1f} s ours ({head['encoding']:.1f} s features, with those of the 96 others; {head['training']:.1f} s "
        f"the head): {theirs / here:.0f} times as fast"
    )


if __name__ == "__main__":
    main()
