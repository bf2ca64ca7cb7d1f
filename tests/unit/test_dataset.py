import os
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from derma import dataset
from derma.augmentation import RandomColor, RandomWarp
from derma.dataset import DatasetError, EpochOrder, LesionData, LesionImages, load_image, make_loader, open_data

AUGMENT = v2.Compose([RandomWarp(32, 180, 10, (0.4, 1), (0.8, 1.25)), RandomColor(0.2, 0.2, 0.2, 0.1), v2.ToImage()])


def test_a_folder_is_opened_with_its_classes_in_order(drawn):
    data = LesionData(drawn)
    assert data.counts.to_numpy().tolist() == [[6, 12, 6, 24], [2, 3, 2, 7], [3, 5, 3, 11], [11, 20, 11, 42]]
    valid = data.split("valid")
    assert valid["target"].tolist() == [0, 0, 1, 1, 1, 2, 2] and set(valid["split"]) == {"valid"}
    assert valid["id"][0].startswith("data/tiny/valid/melanoma/DRAWN_") and len(data.split("train", "valid")) == 31


def test_unusable_images_are_named_and_removed(data_folder, capsys):
    """Values, masks, dangling links and pipes, and the files of file managers."""
    folder = data_folder / "train" / "nevus"
    files = sorted(folder.glob("*.jpg"))
    files[0].write_bytes(files[0].read_bytes()[:500])
    files[1].write_bytes(b"")
    files[2].rename(folder / "other.webp2")
    shutil.copy(files[3], folder / "browser.jfif")
    (folder / "phone.heic").write_bytes(b"....ftypheic")
    Image.new("I;16", (40, 40)).save(folder / "deep.png")
    shutil.copy(files[3], folder / "ISIC_1_superpixels.jpg")
    shutil.copy(files[3], folder / "_DSC0001.jpg")  # as cameras name images in Adobe RGB
    (folder / "dark.ppm").write_bytes(b"P6 4 4 65535 " + b"\x0f\xff" * 48)  # 12 bits of 16
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    for name in ("._thumbnail.jpg", "@eaDir/a.jpg", "../__MACOSX/a.jpg", ".ipynb_checkpoints/a.jpg", "Thumbs.db"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"hidden")
    data = open_data(data_folder, drop_leaks=False, trained=("train",))
    reasons = {file.split("/")[-1]: reason for file, reason in data.unreadable.to_numpy()}
    assert reasons[files[1].name] == "empty file" and "more than 8 bits" in reasons["deep.png"]
    assert "save it as JPEG" in reasons["phone.heic"] and len(reasons) == 8
    assert "a mask" in reasons["ISIC_1_superpixels.jpg"] and "a link to nowhere.jpg" in reasons["gone.jpg"]
    assert "a pipe" in reasons["pipe.jpg"] and "almost black" in reasons["dark.ppm"]
    assert data.counts.loc["train", "nevus"] == 11
    assert "Removed files that cannot be used: 8, such as" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: shutil.rmtree(root / "valid"), "the split folder 'valid' is missing"),
        (lambda root: shutil.rmtree(root / "test" / "nevus"), "nevus: no image of this class can be read; put"),
        (lambda root: (root / "test" / "wart").mkdir(), "wart: unknown class folder"),
        (lambda root: (root / "test" / "nevus" / "more").mkdir(), "more: a folder inside a class folder"),
        (lambda root: [f.write_bytes(b"x") for f in (root / "test" / "nevus").iterdir()], r"can be read \(DRAWN"),
        (lambda root: [shutil.copy(f, f.with_suffix(".png")) for f in (root / "test" / "nevus").iterdir()], "rename"),
        (shutil.rmtree, "no such folder; name one"),
    ],
)
def test_a_wrong_layout_is_one_sentence(data_folder, damage, words):
    damage(data_folder)
    with pytest.raises(DatasetError, match=words):
        LesionData(data_folder)


def test_a_class_is_never_emptied(drawn):
    data = LesionData(drawn)
    melanomas = data.images["path"][(data.images["split"] == "valid") & (data.images["target"] == 0)]
    with pytest.raises(DatasetError, match="no image would be left"):
        data.remove(set(melanomas))
    data.remove({melanomas.iloc[0]})
    assert data.counts.loc["valid", "melanoma"] == 1


def test_an_image_is_turned_upright_and_decoded_small(tmp_path):
    image = Image.new("RGB", (800, 600), "red")
    exif = image.getexif()
    exif[274] = 6  # a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg", 600).size == (600, 800)
    assert load_image(tmp_path / "turned.jpg", 100).size == (150, 200)


def test_each_image_is_decoded_once_and_shared(data_folder, monkeypatch):
    rows = LesionData(data_folder).images
    images = LesionImages(rows, 32, v2.ToImage())
    first = [image for image, _ in images]
    shutil.rmtree(data_folder)
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, images, strict=True))
    part = images.subset(np.array([5, 2]))
    assert torch.equal(part[1][0], first[2]) and part.ids == [images.ids[5], images.ids[2]]
    assert images.augmented(AUGMENT, 0)[2][0].shape == (3, 32, 32)
    assert len(pickle.loads(pickle.dumps(images))) == 42  # for worker processes that are spawned
    monkeypatch.setattr(dataset, "CACHE_SHARE", 0)
    with pytest.raises(FileNotFoundError):
        LesionImages(rows, 32, AUGMENT)[0]


def test_augmentation_depends_on_seed_epoch_and_image_alone(drawn):
    images = LesionImages(LesionData(drawn).split("valid"), 48, AUGMENT).augmented(AUGMENT, seed=1)

    def epochs(workers, dataset=images):
        loader, batches = make_loader(dataset, 2, shuffle=True, seed=3, workers=workers), []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            batches.append(torch.stack([image for batch, _ in loader for image in batch]))
        return batches

    torch.manual_seed(7)
    before = torch.get_rng_state()
    alone = epochs(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(alone, epochs(2)))
    assert not torch.equal(images[0][0], images[7][0])  # the same image in the next epoch
    assert torch.equal(images.subset(np.array([3]))[0][0], images[3][0])
    assert not torch.equal(images[0][0], images.augmented(AUGMENT, seed=2)[0][0])


def test_an_epochs_order_follows_from_its_number():
    order = EpochOrder(10, seed=1)
    first = list(order)
    order.set_epoch(1)  # as Accelerate's loader does: in test_run
    second = list(order)
    assert sorted(first) == list(range(10)) != first and sorted(second) == list(range(10, 20))
    assert first != [number - 10 for number in second]
    assert first == list(EpochOrder(10, seed=1))


def test_class_folders_alone_are_cut_into_splits(drawn, tmp_path):
    clinic = tmp_path / "clinic"
    for file in drawn.glob("*/*/*"):
        (clinic / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, clinic / file.parent.name)
    names = sorted(file.name for file in (clinic / "nevus").iterdir())
    lesions = ["IL_1"] * 9 + [None] * len(names[9:])
    pd.DataFrame({"isic_id": names, "lesion_id": lesions}).to_csv(clinic / "metadata.csv", index=False)
    images = LesionData(clinic).images
    assert images["split"].value_counts().to_dict() == {"train": 33, "valid": 3, "test": 6}
    assert images.set_index(images["path"].map(os.path.basename)).loc[names[:9], "split"].nunique() == 1
    for content, words in (
        (b"isic_id,lesion_id\n\xff", "not a CSV file"),
        (b"lesion_id,id\n1,2\n", "names none of"),
        (b"isic_id;lesion_id\na;1\n", "name one column 'lesion_id'"),
        (b"lesion_id,diagnosis\n1,2,3\n", "not a CSV file"),  # pandas would take the first column for row names
    ):
        (clinic / "metadata.csv").write_bytes(content)
        with pytest.raises(DatasetError, match=f"metadata.csv: .*{words}"):
            LesionData(clinic)
    (clinic / "metadata.csv").unlink()
    first = next((clinic / "melanoma").iterdir())
    first.rename(first.with_name(names[0]))  # two classes may each hold an image of one name
    assert len(LesionData(clinic).images) == 42
    (clinic / "metadata.csv").write_text(f"isic_id,lesion_id\n{names[0]},IL_1\n")
    with pytest.raises(DatasetError, match="two images have the name"):
        LesionData(clinic)
    (clinic / "metadata.csv").unlink()
    shutil.copy(clinic / "nevus" / names[1], (clinic / "nevus" / names[1]).with_suffix(".png"))
    with pytest.raises(DatasetError, match="has the name of"):
        LesionData(clinic)
    (clinic / "nevus" / names[1]).unlink()
    shutil.rmtree(clinic / "seborrheic_keratosis")  # another clinic's images may lack a class
    assert (LesionData(clinic, need_classes=False).counts["seborrheic_keratosis"] == 0).all()
    with pytest.raises(DatasetError, match=r"neither splits .* nor at least 3 of the class folders .* with eight"):
        LesionData(clinic)
    shutil.rmtree(clinic / "nevus")
    with pytest.raises(DatasetError, match=r"neither splits .* nor at least 2 of the class folders .* with eight"):
        LesionData(clinic, need_classes=False)
