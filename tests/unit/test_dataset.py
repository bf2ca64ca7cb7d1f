import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from derma.dataset import (
    CLASSES,
    DatasetError,
    KeptPictures,
    LesionData,
    keep_if_small,
    load_image,
    load_square,
    make_loader,
)

TO_TENSOR = v2.Compose([v2.ToImage(), v2.Resize((32, 32)), v2.ToDtype(torch.float32, scale=True)])


def test_counts_classes_and_ids(data_folder):
    data = LesionData(data_folder)
    assert data.name == "tiny"
    assert data.counts.columns.tolist() == [*CLASSES, "all"]
    assert data.counts.loc["train"].tolist() == [6, 12, 6, 24]
    assert data.counts.loc["all"].tolist() == [11, 20, 11, 42]
    assert data.unreadable.empty
    test = data.split("test")
    assert test.classes == ["melanoma", "nevus", "seborrheic_keratosis"]
    assert test.ids[0] == "data/tiny/test/melanoma/DRAWN_2000000.jpg"
    assert [i.split("/")[3] for i in test.ids] == [CLASSES[target] for target in test.targets]


def test_id_of_a_linked_folder_has_the_links_name(data_folder, tmp_path):
    link = tmp_path / "data" / "isic2017"
    link.parent.mkdir()
    link.symlink_to(data_folder)
    assert LesionData(link).split("valid").ids[0].startswith("data/isic2017/valid/melanoma/")


def test_files_that_are_no_pictures_do_not_matter(data_folder):
    (data_folder / "LICENSE.txt").write_text("CC-0")
    (data_folder / "train" / "nevus" / "notes.csv").write_text("a,b")
    (data_folder / "train" / ".ipynb_checkpoints").mkdir()
    (data_folder / "train" / "__MACOSX").mkdir()
    assert LesionData(data_folder).counts.loc["train", "all"] == 24


def refuses(folder: Path, *words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        LesionData(folder)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    for word in words:
        assert word in message


def test_missing_folder(tmp_path):
    refuses(tmp_path / "nowhere", "nowhere", "no such folder", "DERMA_DATA", "python -m derma.sample")


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_missing_split(data_folder, split):
    shutil.rmtree(data_folder / split)
    refuses(data_folder, f"'{split}' is missing")


def test_unknown_class(data_folder):
    (data_folder / "valid" / "naevus").mkdir()
    refuses(data_folder, str(Path("valid") / "naevus"), "unknown class folder", "seborrheic_keratosis")


def test_missing_class(data_folder):
    shutil.rmtree(data_folder / "test" / "nevus")
    refuses(data_folder, str(Path("test") / "nevus"), "missing")


def test_empty_class(data_folder):
    for file in (data_folder / "test" / "nevus").iterdir():
        file.unlink()
    refuses(data_folder, str(Path("test") / "nevus"), "no pictures")


def test_class_of_which_nothing_can_be_read(data_folder):
    for file in (data_folder / "test" / "nevus").iterdir():
        file.write_bytes(b"")
    refuses(data_folder, str(Path("test") / "nevus"), "none of this class's pictures can be read", "empty file")


def test_pictures_in_hidden_folders_do_not_count(data_folder):
    for name in (".thumbs", "__MACOSX"):
        hidden = data_folder / "train" / "nevus" / name
        hidden.mkdir()
        shutil.copy(data_folder / "train" / "nevus" / "DRAWN_0100000.jpg", hidden / "thumb.jpg")
    data = LesionData(data_folder)
    assert data.counts.loc["train", "nevus"] == len(data.split("train").ids) / 2 == 12


def test_pictures_with_an_ending_that_is_not_read_are_listed(data_folder):
    nevi = data_folder / "train" / "nevus"
    (nevi / "DRAWN_0100000.jpg").rename(nevi / "DRAWN_0100000.jfif")
    data = LesionData(data_folder)
    assert data.counts.loc["train", "nevus"] == 11
    assert Path(data.unreadable["file"][0]).name == "DRAWN_0100000.jfif"
    assert "save it as JPEG or PNG" in data.unreadable["reason"][0]


def test_a_folder_in_a_class_folder(data_folder):
    (data_folder / "train" / "nevus" / "more").mkdir()
    refuses(data_folder, str(Path("nevus") / "more"), "inside a class folder")


def test_two_pictures_of_one_name(data_folder):
    shutil.copy(data_folder / "test" / "nevus" / "DRAWN_2100000.jpg", data_folder / "test" / "melanoma")
    refuses(data_folder, "test", "two pictures are named 'DRAWN_2100000'")


def test_id_of_a_linked_split(data_folder, tmp_path):
    (data_folder / "test").rename(tmp_path / "official")
    (data_folder / "test").symlink_to(tmp_path / "official")
    assert LesionData(data_folder).split("test").ids[0].startswith("data/tiny/test/melanoma/")


def test_sixteen_bit_pictures_are_left_out_and_not_clipped(data_folder):
    deep = np.full((40, 40), 30_000, np.uint16)
    Image.fromarray(deep).save(data_folder / "train" / "nevus" / "deep.png")
    unreadable = LesionData(data_folder).unreadable
    assert Path(unreadable["file"][0]).name == "deep.png" and "more than 8 bits" in unreadable["reason"][0]


def test_unreadable_pictures_are_listed_and_left_out(data_folder):
    nevi = sorted((data_folder / "train" / "nevus").iterdir())
    nevi[0].write_bytes(b"")
    nevi[1].write_text("<html>404</html>")
    whole = nevi[2].read_bytes()
    nevi[2].write_bytes(whole[: len(whole) // 2])  # what an interrupted download leaves
    data = LesionData(data_folder)
    listed = dict(zip((Path(f).name for f in data.unreadable["file"]), data.unreadable["reason"], strict=True))
    assert set(listed) == {f.name for f in nevi[:3]}
    assert listed[nevi[0].name] == "empty file"
    assert listed[nevi[1].name] == "not a picture"
    assert "truncated" in listed[nevi[2].name]
    assert data.counts.loc["train"].tolist() == [6, 9, 6, 21]
    train = data.split("train", TO_TENSOR)
    assert len(train) == len(train.ids) == len(train.targets) == 21
    assert nevi[2].read_bytes() == whole[: len(whole) // 2]  # nothing is repaired


def test_a_decompression_bomb_is_left_out(data_folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    for split in ("train", "valid", "test"):
        for name in CLASSES:
            Image.new("RGB", (8, 8)).save(data_folder / split / name / f"{name}.png")
    data = LesionData(data_folder)
    assert len(data.unreadable) == 42
    assert data.unreadable["reason"].str.contains("more pixels").all()


def test_pictures_are_turned_upright_and_made_rgb(tmp_path):
    picture = Image.new("L", (40, 20), 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    loaded = load_image(tmp_path / "turned.jpg")
    assert loaded.mode == "RGB" and loaded.size == (20, 40)


def test_draft_decodes_no_smaller_than_asked(tmp_path):
    Image.new("RGB", (800, 600), (120, 80, 60)).save(tmp_path / "large.jpg")
    assert load_image(tmp_path / "large.jpg").size == (800, 600)
    width, height = load_image(tmp_path / "large.jpg", short_side=128).size
    assert (width, height) == (200, 150)


def targets_in_order(loader: DataLoader) -> list[int]:
    return torch.cat([targets for _, targets in loader]).tolist()


def test_shuffling_is_seeded_and_new_in_every_epoch(drawn):
    train = LesionData(drawn).split("train", TO_TENSOR)
    first, second = (make_loader(train, 4, shuffle=True, seed=3) for _ in range(2))
    epochs = [targets_in_order(first) for _ in range(3)]
    assert epochs == [targets_in_order(second) for _ in range(3)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != targets_in_order(make_loader(train, 4, shuffle=True, seed=4))
    assert sorted(epochs[0]) == train.targets


def test_test_split_keeps_its_order(drawn):
    test = LesionData(drawn).split("test", TO_TENSOR)
    assert targets_in_order(make_loader(test, 4)) == test.targets


@pytest.mark.parametrize("method", [m for m in ("spawn", "forkserver") if m in multiprocessing.get_all_start_methods()])
def test_workers_give_what_the_main_process_gives(drawn, method):
    train = LesionData(drawn).split("train", TO_TENSOR)
    alone = [batch for batch, _ in make_loader(train, 10)]
    loader = make_loader(train, 10, workers=1)
    loader.multiprocessing_context = method
    assert all(np.array_equal(a, b) for a, b in zip(alone, (batch for batch, _ in loader), strict=True))


def test_squares_are_whole_pictures(tmp_path):
    picture = Image.new("RGB", (800, 400), "red")
    picture.paste("blue", (400, 0, 800, 400))
    picture.save(tmp_path / "wide.jpg")
    square = load_square(tmp_path / "wide.jpg", 60)
    assert square.size == (60, 60)
    assert square.getpixel((10, 30))[0] > 200 and square.getpixel((50, 30))[2] > 200


class CountedReads:
    """A loader that writes down what it reads; workers can be sent it."""

    def __init__(self, log, side):
        self.log, self.side = log, side

    def __call__(self, path):
        with self.log.open("a") as file:
            file.write(f"{path}\n")
        return load_square(path, self.side)


@pytest.mark.parametrize("method", [m for m in ("spawn", "forkserver") if m in multiprocessing.get_all_start_methods()])
def test_kept_pictures_are_decoded_once_and_shared_with_workers(drawn, method, tmp_path):
    folder = LesionData(drawn).split("train", TO_TENSOR, 32)
    expected = [picture for picture, _ in folder]
    folder.loader = CountedReads(tmp_path / "reads", 32)
    kept = KeptPictures(folder, 32)
    loader = make_loader(kept, 7, workers=2)
    loader.multiprocessing_context = method
    for _ in range(3):
        pictures = torch.cat([batch for batch, _ in loader])
        assert all(torch.equal(a, b) for a, b in zip(pictures, expected, strict=True))
    assert torch.equal(kept[5][0], expected[5])
    assert len((tmp_path / "reads").read_text().splitlines()) == len(folder)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory has no folder here")
def test_a_killed_process_leaves_no_pictures_behind(drawn):
    code = (
        "import os, signal, sys\nfrom derma.dataset import KeptPictures, LesionData\n"
        "kept = KeptPictures(LesionData(sys.argv[1]).split('train', None, 64), 64)\n"
        "assert kept[3][0].size == (64, 64)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    before = shutil.disk_usage("/dev/shm").used, set(Path(tempfile.gettempdir()).iterdir())
    assert subprocess.run([sys.executable, "-c", code, str(drawn)], cwd=ROOT).returncode == -9
    after = shutil.disk_usage("/dev/shm").used, set(Path(tempfile.gettempdir()).iterdir())
    assert after[0] - before[0] < 24 * 64 * 64 * 3
    assert not {path.name for path in after[1] - before[1] if "derma" in path.name}


def test_pictures_that_would_fill_the_memory_are_not_kept(drawn, monkeypatch):
    folder = LesionData(drawn).split("test", TO_TENSOR, 16)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=len(folder) * 16 * 16 * 3 * 4 - 1))
    assert keep_if_small(folder, 16) is folder


def test_extra_pictures_join_the_training_split_alone(drawn, tmp_path):
    extra = tmp_path / "more"
    (extra / "nevus").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(extra / "nevus" / f"ISIC_{number}.jpg")
    (extra / "nevus" / "torn.jpg").write_bytes(b"\xff\xd8")
    (extra / "nevus" / "other.jfif").write_bytes(b"")
    (extra / ".incoming").mkdir()
    before, data = LesionData(drawn).counts, LesionData(drawn, extra)
    assert (data.counts - before).loc["train"].tolist() == [0, 3, 0, 3]
    assert (data.counts - before).loc[["valid", "test"]].to_numpy().sum() == 0
    assert {Path(file).name for file in data.unreadable["file"]} == {"torn.jpg", "other.jfif"}
    train = data.split("train", TO_TENSOR)
    assert train.ids[-1] == "data/more/nevus/ISIC_2.jpg" and train[len(train) - 1][1] == 1


@pytest.mark.parametrize("wrong", ["missing", "unknown", "empty", "official"])
def test_wrong_extra_folders(drawn, tmp_path, wrong):
    extra = tmp_path / "more"
    says = "no such folder"
    if wrong != "missing":
        (extra / "nevus").mkdir(parents=True)
        says = "no pictures"
    if wrong == "unknown":
        (extra / "naevus").mkdir()
        says = "unknown class folder"
    if wrong == "official":
        shutil.copy(drawn / "test" / "nevus" / "DRAWN_2100000.jpg", extra / "nevus")
        says = "must not be trained on"
    with pytest.raises(DatasetError, match=says):
        LesionData(drawn, extra)


def test_left_out_pictures_are_gone_from_their_split(drawn):
    data = LesionData(drawn)
    gone = data.split("train").samples[0][0]
    data.leave_out({gone})
    assert data.counts.loc["train"].tolist() == [5, 12, 6, 23]
    assert gone not in dict(data.split("train").samples)
    with pytest.raises(DatasetError, match="no picture would be left"):
        data.leave_out({path for path, target in data.split("valid").samples if target == 2})
    assert data.counts.loc["valid", "seborrheic_keratosis"] == 2


def test_odds_bring_rare_items_as_often_in_a_seeded_order():
    targets = torch.tensor([0] * 90 + [1] * 10)
    odds = 1 / torch.bincount(targets)[targets]
    dataset = torch.utils.data.TensorDataset(torch.arange(100), targets)
    first, second = (make_loader(dataset, 10, shuffle=True, seed=2, odds=odds) for _ in range(2))
    epochs = [targets_in_order(first) for _ in range(40)]
    assert epochs == [targets_in_order(second) for _ in range(40)]
    assert np.mean(epochs) == pytest.approx(0.5, abs=0.04)  # 4,000 draws: five standard errors


def test_batches_of_vectors_are_those_of_their_rows():
    rows = torch.utils.data.TensorDataset(torch.randn(25, 4), torch.arange(25))
    for shuffle, batches in ((True, 3), (False, 4)):  # a last batch of four is dropped, or not
        whole = make_loader(rows, 7, shuffle=shuffle, seed=1)
        single = make_loader(torch.utils.data.Subset(rows, range(25)), 7, shuffle=shuffle, seed=1)
        for _ in range(2):  # epochs
            pairs = list(zip(whole, single, strict=True))
            assert len(pairs) == batches
            assert all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))
