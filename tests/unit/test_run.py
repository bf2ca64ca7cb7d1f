import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field
from torch import nn

from derma.dataset import make_loader
from derma.run import Run, cosine_with_warmup, restore, seed_everything
from derma.states import load_state


class Images:
    length = 10

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        return torch.full((3, 4, 4), float(number % self.length)), number % 3


class Settings(BaseModel):
    lr: float = 0.1
    workers: int = Field(0, exclude=True)


def train(folder, epochs=4, stop_after=None, resume=True, poison=1.0, about=None, **settings):
    """Train a tiny network whose steps draw random numbers; may be interrupted after an epoch."""
    seed_everything(0)
    accelerator, settings = Accelerator(cpu=True), Settings(**settings)
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(12, 3)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr)
    loader = make_loader(Images(), 4, shuffle=True, seed=0)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    scheduler = cosine_with_warmup(optimizer, warmup=2, steps=epochs * len(loader))
    run = Run(folder, "fold-0", settings, accelerator, network=network, optimizer=optimizer, scheduler=scheduler,
              about=about, resume=resume)  # fmt: skip
    for epoch in run.remaining(epochs):
        for images, targets in run.progress(loader, epoch):
            noise = torch.randn(()) + random.random() + np.random.rand()  # noqa: NPY002
            loss = nn.functional.cross_entropy(network(images + noise), targets) * poison
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            run.log(train_loss=loss)
        run.end_epoch(valid_auc=0.5)
        if epoch == stop_after:
            raise KeyboardInterrupt
    return run


@pytest.fixture
def unbroken(tmp_path):
    return train(tmp_path / "unbroken")


@pytest.fixture
def broken(tmp_path, unbroken):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop_after=3)
    return tmp_path / "broken"


def state_of(folder):
    return load_state(folder / "fold-0.safetensors")["network"].values()


def test_an_interrupted_training_ends_as_if_it_had_not_been(broken, unbroken, capsys):
    resumed = train(broken, workers=2)  # which does not change what is trained
    assert "fold-0: resumed after epoch 3." in capsys.readouterr().out
    assert all(map(torch.equal, state_of(broken), state_of(unbroken.folder)))
    histories = [run.history.drop(columns=["seconds", "images_per_second"]) for run in (resumed, unbroken)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert list(resumed.history) == ["epoch", "train_loss", "valid_auc", "lr", "images_per_second", "seconds"]
    assert not list(broken.glob("*checkpoint*")) and list((broken / "tensorboard").rglob("events*"))


def test_a_finished_training_is_loaded_and_not_repeated(unbroken, capsys):
    file, metrics = unbroken.folder / "fold-0.safetensors", unbroken.folder / "metrics.json"
    before = file.stat().st_mtime_ns
    metrics.touch()
    again = train(unbroken.folder, stop_after=1)
    assert "trained before, and loaded" in capsys.readouterr().out
    assert before == file.stat().st_mtime_ns and metrics.exists()
    pd.testing.assert_frame_equal(again.history, unbroken.history)
    with pytest.raises(KeyboardInterrupt):
        train(unbroken.folder, stop_after=1, resume=False)
    assert not metrics.exists()  # derma.predict refuses a run that is being trained


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(broken, unbroken, capsys):
    last = max(broken.glob("*checkpoint*"))
    last.write_bytes(last.read_bytes()[:-1] + bytes([255 - last.read_bytes()[-1]]))
    train(broken)
    out = capsys.readouterr().out
    assert f"{last}: missing or damaged" in out and "resumed after epoch 2" in out
    assert all(map(torch.equal, state_of(broken), state_of(unbroken.folder)))


def test_other_settings_neither_continue_nor_overwrite(broken, unbroken, capsys):
    kept = {file.name for file in broken.glob("*checkpoint*")}
    train(broken, lr=0.2)
    assert "resumed" not in capsys.readouterr().out
    train(broken, about="an edited augmentation")
    assert "of other settings or code; it will be replaced" in capsys.readouterr().out
    assert {file.name for file in broken.glob("*checkpoint*")} == kept
    train(broken)
    assert all(map(torch.equal, state_of(broken), state_of(unbroken.folder)))


def test_what_cannot_be_trained_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Epoch 1: train_loss is not finite; set the learning rates lower"):
        train(tmp_path, poison=math.inf)
    monkeypatch.setattr(Images, "length", 3)
    with pytest.raises(ValueError, match="do not fill one batch; set DERMA_BATCH_SIZE lower"):
        train(tmp_path / "few")


def test_moments_are_laid_out_as_their_parameters():
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.rand(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].contiguous()  # as it comes from a file
    restore(optimizer, state)
    assert optimizer.state[layer.weight]["exp_avg"].is_contiguous(memory_format=torch.channels_last)


def test_the_rate_rises_then_follows_a_cosine_to_zero():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler, rates = cosine_with_warmup(optimizer, warmup=2, steps=8), []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:2] == [1, max(rates)] and rates[4] == pytest.approx(1) and optimizer.param_groups[0]["lr"] == 0
