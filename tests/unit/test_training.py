import random
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet18_Weights, densenet121, get_model, resnet18

from derma import training
from derma.training import (
    Checkpoints,
    WeightsError,
    best_precision,
    cut,
    get_rng_state,
    load_pretrained,
    load_weights,
    moving_average,
    restore,
    save_history,
    save_weights,
    seed_everything,
    set_rng_state,
)


def test_seed_everything_seeds_all_three():
    def draw():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert not set(draw()) & set(first)


def test_best_precision_is_one_that_accelerate_knows():
    assert best_precision() in ("no", "bf16", "fp16")


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="is about CPUs")
@pytest.mark.parametrize(("has", "expected"), [("amx_bf16", "bf16"), ("avx512_bf16", "bf16"), ("avx512_f", "no")])
def test_a_cpu_computes_in_bfloat16_if_it_has_instructions_for_it(monkeypatch, has, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True}, raising=False)
    assert best_precision() == expected


def test_weights_round_trip(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_weights(model, tmp_path / "deep" / "best.safetensors", epoch=4)
    load_weights(other, tmp_path / "deep" / "best.safetensors")
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["best.safetensors"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "best.safetensors"
    model = nn.Linear(3, 2)
    save_weights(model, file)

    def torn(state, partial, metadata):
        Path(partial).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(training, "save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        save_weights(nn.Linear(3, 2), file)
    other = nn.Linear(3, 2)
    load_weights(other, file)
    assert torch.equal(other.weight, model.weight)


def refuses(call, *words):
    with pytest.raises(WeightsError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_weight_files(tmp_path):
    model = nn.Linear(3, 2)
    refuses(lambda: load_weights(model, tmp_path / "none.safetensors"), "none.safetensors", "no such weights file")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0")
    refuses(lambda: load_weights(model, tmp_path / "torn.safetensors"), "torn.safetensors", "not a safetensors file")
    torch.save(model.state_dict(), tmp_path / "pickled.pth")
    refuses(lambda: load_weights(model, tmp_path / "pickled.pth"), "pickled.pth", "nothing is unpickled")
    save_weights(nn.Linear(4, 2), tmp_path / "other.safetensors")
    refuses(lambda: load_weights(model, tmp_path / "other.safetensors"), "other.safetensors", "not the weights")


def test_pretrained_from_a_file_in_half_precision_without_its_last_layer(tmp_path):
    source, model = resnet18(), resnet18()
    state = {
        k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items() if not k.startswith("fc.")
    }
    save_file(state, tmp_path / "w.safetensors")
    before = model.fc.weight.clone()
    load_pretrained(model, "resnet18", str(tmp_path / "w.safetensors"), "fc", tmp_path)
    assert model.conv1.weight.dtype == torch.float32
    assert torch.equal(model.conv1.weight, source.conv1.weight.half().float())
    assert torch.equal(model.fc.weight, before)


def test_pretrained_none_leaves_the_model_alone(tmp_path):
    model = resnet18()
    before = model.conv1.weight.clone()
    load_pretrained(model, "resnet18", "none", "fc", tmp_path)
    assert torch.equal(model.conv1.weight, before)


def test_weights_of_another_model(tmp_path):
    save_file(resnet18().state_dict(), tmp_path / "w.safetensors")
    model = get_model("resnet34")
    refuses(
        lambda: load_pretrained(model, "resnet34", str(tmp_path / "w.safetensors"), "fc", tmp_path),
        "w.safetensors", "resnet34", "DERMA_MODEL",
    )  # fmt: skip


def test_unreachable_weights_name_the_file_to_fetch(tmp_path, monkeypatch):
    def offline(*arguments, **settings):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    url = ResNet18_Weights.IMAGENET1K_V1.url
    refuses(
        lambda: load_pretrained(resnet18(), "resnet18", "imagenet", "fc", tmp_path),
        url, str(tmp_path / Path(url).name), "no route to host",
    )  # fmt: skip


def test_a_file_put_where_the_message_says_is_used(tmp_path, monkeypatch):
    """As torchvision publishes it: a .pth with a hash in its name, here one of our own making."""
    source, model = resnet18(), resnet18()
    monkeypatch.setattr("torch.hub.HASH_REGEX", training.re.compile("(never)"))  # our file has another hash
    file = tmp_path / Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    torch.save(source.state_dict(), file)
    load_pretrained(model, "resnet18", "imagenet", "fc", tmp_path)
    assert torch.equal(model.fc.weight, source.fc.weight)


@pytest.mark.parametrize("content", [b"", b"<html>no such page</html>", b"PK\3\4 torn"])
def test_a_damaged_download_is_said_to_be(tmp_path, content):
    file = tmp_path / Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    file.write_bytes(content)
    refuses(
        lambda: load_pretrained(resnet18(), "resnet18", "imagenet", "fc", tmp_path), str(file), "damaged", "delete it"
    )


def test_densenets_published_names_are_understood(tmp_path, monkeypatch):
    source, model = densenet121(), densenet121()
    old = {
        training.re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", k): v for k, v in source.state_dict().items()
    }
    assert set(old) != set(source.state_dict())
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: old)
    load_pretrained(model, "densenet121", "imagenet", "classifier", tmp_path)
    key = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(model.state_dict()[key], source.state_dict()[key])


# --- checkpoints -----------------------------------------------------------------------------------------------------


def some_state(epoch=3):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    return {
        "network": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": get_rng_state(),
        "best": (0.8125, -1.5), "history": [{"epoch": epoch, "loss": 1 / 3}], "array": np.arange(3), "none": None,
        "half": torch.ones(2, dtype=torch.bfloat16), "empty": [],
    }  # fmt: skip


def assert_same(one, other):
    assert type(one) is type(other) or (isinstance(one, dict) and isinstance(other, dict))
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            assert_same(a, b)
    else:
        assert one == other


def test_equal_weights_have_one_digest_and_any_change_another():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    first = training.weights_digest(network)
    assert training.weights_digest(network.to(memory_format=torch.channels_last)) == first
    network[1].running_mean[2] += 1e-6
    assert training.weights_digest(network) != first
    network[1].running_mean[2] = 0
    assert training.weights_digest(network) == first
    assert training.weights_digest(nn.ModuleDict({"a": network[0], "b": network[1]})) != first


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    state = some_state()
    Checkpoints(tmp_path, {"seed": 0}).save(3, state)
    found, said = Checkpoints(tmp_path, {"seed": 0}).load()
    assert said == []
    assert_same(state, found)
    draws = []
    for _ in range(2):
        set_rng_state(found["rng"])
        draws.append([random.random(), np.random.rand(), torch.rand(()).item()])  # noqa: NPY002
    assert draws[0] == draws[1] != [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002


def test_two_checkpoints_are_kept_and_removed_together(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"seed": 0})
    Checkpoints(tmp_path, {"seed": 1}).save(9, some_state())
    for epoch in range(1, 5):
        checkpoints.save(epoch, {"epoch": epoch})
    assert [file.name[-17:-12] for file in checkpoints._files()] == ["00004", "00003"]
    assert checkpoints.load()[0] == {"epoch": 4}
    checkpoints.remove()
    assert len(list(tmp_path.iterdir())) == 1  # that of other settings


@pytest.mark.parametrize("damage", ["truncated", "emptied", "a page of zeros", "metadata", "garbage"])
def test_a_torn_checkpoint_is_noticed_and_the_one_before_used(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, {"seed": 0})
    checkpoints.save(1, some_state(1))
    checkpoints.save(2, some_state(2))
    last = checkpoints._files()[0]
    content = last.read_bytes()
    if damage == "a page of zeros":
        content = content[:-600] + bytes(500) + content[-100:]
    elif damage == "metadata":
        content = content.replace(b"0.8125", b"0.9125")
    else:
        content = {"truncated": content[:-100], "emptied": b"", "garbage": b"x" * 1000}[damage]
    assert content != last.read_bytes()
    last.write_bytes(content)
    found, said = checkpoints.load()
    assert found["history"][0]["epoch"] == 1
    assert len(said) == 2 and str(last) in said[0] and "damaged" in said[0] and "used instead" in said[1]


def test_both_torn_starts_anew(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"seed": 0})
    for epoch in (1, 2):
        checkpoints.save(epoch, some_state())
    for file in checkpoints._files():
        file.write_bytes(b"")
    found, said = checkpoints.load()
    assert found is None and len(said) == 3 and said[2].startswith("No checkpoint is whole")
    for epoch in (1, 2, 3):  # and the new course is kept, whatever lies there of the old one
        checkpoints.save(epoch, {"epoch": epoch})
        assert checkpoints.load() == ({"epoch": epoch}, [])


def test_a_course_begun_anew_replaces_the_old_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"seed": 0})
    for epoch in (9, 10):
        checkpoints.save(epoch, {"course": "old"})
    checkpoints.save(1, {"course": "new"})
    assert checkpoints.load() == ({"course": "new"}, [])
    assert len(list(tmp_path.iterdir())) == 1


def test_other_settings_are_told_and_not_resumed(tmp_path):
    Checkpoints(tmp_path, {"seed": 0, "epochs": 5}).save(2, some_state())
    found, said = Checkpoints(tmp_path, {"seed": 1, "epochs": 5}).load()
    assert found is None
    assert len(said) == 1 and "seed was 0, is 1" in said[0] and "epochs" not in said[0]


def test_a_checkpoint_holds_nothing_that_would_have_to_be_unpickled(tmp_path):
    with pytest.raises(TypeError, match="cannot hold a object"):
        Checkpoints(tmp_path, {}).save(1, {"model": object()})
    assert not list(tmp_path.glob("*.safetensors"))


def test_moving_average_weighs_the_past_as_said():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
    average = moving_average(model, 0.9)
    expected = None
    for step in range(30):
        with torch.no_grad():
            model[0].weight.fill_(float(step))
            model[1].running_mean.fill_(-float(step))
            model[1].num_batches_tracked.fill_(step)
        average.update_parameters(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = float(step) if expected is None else decay * expected + (1 - decay) * step
        assert torch.allclose(average.module[0].weight, torch.tensor(expected), rtol=1e-5)
        assert torch.allclose(average.module[1].running_mean, torch.tensor(-expected), rtol=1e-5)
        assert average.module[1].num_batches_tracked == step
    assert model[0].weight[0, 0] == 29  # the model itself is left alone


def test_a_history_is_written_whole(tmp_path):
    save_history([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}], tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text() == "epoch,loss\n1,0.5\n2,0.25\n"
    assert [file.name for file in tmp_path.iterdir()] == ["history.csv"]


def test_checkpoints_side_by_side_keep_to_themselves(tmp_path):
    first, second = (Checkpoints(tmp_path, {"seed": 0}, name) for name in ("checkpoint-1", "checkpoint-10"))
    first.save(1, {"epoch": 1})
    assert second.load() == (None, [])  # and no sentence about the other's
    other = Checkpoints(tmp_path, {"seed": 1}, "checkpoint-1")
    assert "seed was 0, is 1" in other.load()[1][0]
    second.save(1, {"epoch": 1})
    first.remove()
    assert second.load()[0] == {"epoch": 1}


def test_a_restored_fused_optimizer_goes_on_as_if_nothing_had_happened(tmp_path):
    """Its moments must lie in memory as the channels-last weights do, which files do not keep."""

    def begin():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
        model(torch.ones(1, 3, 8, 8))
        model = model.to(memory_format=torch.channels_last)
        return {"network": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)}

    def step(parts, seed):
        batch = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        parts["network"](batch.contiguous(memory_format=torch.channels_last)).square().mean().backward()
        parts["optimizer"].step()
        parts["optimizer"].zero_grad()

    unbroken = begin()
    step(unbroken, 1)
    Checkpoints(tmp_path, {}).save(1, {name: part.state_dict() for name, part in unbroken.items()})
    step(unbroken, 2)
    resumed = begin()
    saved, _ = Checkpoints(tmp_path, {}).load()
    for name, part in resumed.items():
        restore(part, saved[name])
    step(resumed, 2)
    for expected, got in zip(unbroken["network"].parameters(), resumed["network"].parameters(), strict=True):
        assert torch.equal(expected, got)


CUTS = [
    ("resnet18", "layer4", 256),
    ("densenet121", "features.denseblock4", 512),
    ("efficientnet_b0", "features.7", 192),  # has stochastic depth
    ("mobilenet_v3_small", "features.10", 96),
]


@pytest.mark.parametrize(("name", "layer", "channels"), CUTS)
def test_a_cut_network_is_the_same_network(name, layer, channels):
    network = get_model(name)
    first, second = cut(network, layer)
    pictures = torch.rand(3, 3, 64, 64)
    for mode in (True, False):
        network.train(mode)
        torch.manual_seed(0)
        whole = network(pictures)
        torch.manual_seed(0)
        maps = first(pictures)
        assert maps.shape[:2] == (3, channels)
        assert torch.equal(second(maps), whole)
    own = {id(each) for each in network.parameters()}
    late = {id(each) for each in second.parameters()}
    assert late < own and not late & {id(each) for each in first.parameters()}


@pytest.mark.parametrize(
    ("layer", "words"), [("layer5", "no layer 'layer5'"), ("conv1", "others before"), ("layer4.1.conv2", "2 tensors")]
)
def test_a_network_cannot_be_cut_anywhere(layer, words):
    with pytest.raises(ValueError, match=words):
        cut(resnet18(), layer)
