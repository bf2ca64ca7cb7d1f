from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from derma import check
from derma.check import photographs, training_leaks
from derma.dataset import CLASSES, LesionData
from derma.duplicates import SURE_FINE, agreement, find_duplicates, orient, thumbnail
from derma.sample import draw_picture, draw_sample


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Sixty drawn photographs, none of them twice."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(60):
        picture = draw_picture(CLASSES[number % 3], np.random.default_rng((7, number)), (256, 192))
        picture.save(folder / f"{number:02}.jpg", quality=90)
    return folder


def test_different_lesions_are_no_duplicates(pictures):
    assert find_duplicates(sorted(pictures.iterdir())).empty


def crop(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    return picture.crop((round(0.02 * width), round(0.03 * height), round(0.97 * width), round(0.98 * height)))


CHANGES = {
    "copied": lambda p: p,
    "re-compressed": lambda p: p,
    "resized": lambda p: p.resize((180, 135), Image.Resampling.LANCZOS),
    "mirrored": lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda p: p.transpose(Image.Transpose.ROTATE_180),
    "turned": lambda p: p.transpose(Image.Transpose.ROTATE_90),
    "mirrored and turned": lambda p: p.transpose(Image.Transpose.TRANSPOSE),
    "cropped": crop,
    "cropped and mirrored": lambda p: crop(p).transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "recoloured": lambda p: Image.fromarray(
        np.clip(np.asarray(p, float) * (0.9, 1.05, 1.2) + 8, 0, 255).astype(np.uint8)
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_planted_duplicates_are_found(pictures, tmp_path, name):
    files = sorted(pictures.iterdir())
    planted = set()
    for number in range(0, 60, 6):
        target = tmp_path / f"copy{number:02}.jpg"
        if name == "copied":
            target.write_bytes(files[number].read_bytes())
        else:
            CHANGES[name](Image.open(files[number])).save(target, quality=60)
        planted.add((str(files[number]), str(target)))
    found = find_duplicates([*files, *sorted(tmp_path.iterdir())])
    assert set(zip(found["first"], found["second"])) == planted
    assert (found["kind"] == "same bytes").all() if name == "copied" else (found["kind"] != "same bytes").all()
    assert ((found["kind"] == "suspected") == (found["fine"] < SURE_FINE)).all()


def test_orientation_says_how_to_turn_the_second(pictures, tmp_path):
    file = sorted(pictures.iterdir())[1]
    for number in range(8):
        turned = orient(np.asarray(Image.open(file)).transpose(2, 0, 1), number).transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / f"{number}.png")
        found = find_duplicates([file, tmp_path / f"{number}.png"])
        assert len(found) == 1
        aligned = orient(thumbnail(tmp_path / f"{number}.png"), found["orientation"][0])
        assert agreement(thumbnail(file), aligned) > 0.9


def test_leaks_between_splits(tmp_path, monkeypatch, capsys):
    draw_sample(tmp_path / "leaky", {"train": (4, 8, 4), "valid": (2, 3, 2), "test": (3, 4, 3)}, (128, 96), seed=3)
    leaky = tmp_path / "leaky"
    train, test = (sorted((leaky / split / "nevus").iterdir()) for split in ("train", "test"))
    Image.open(train[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        leaky / "test" / "nevus" / "planted.jpg", quality=80
    )
    (leaky / "valid" / "nevus" / "again.jpg").write_bytes(test[0].read_bytes())
    (leaky / "train" / "nevus" / "torn.jpg").write_bytes(b"no")
    monkeypatch.chdir(tmp_path)
    assert check.main(["leaky"]) == 0
    out = capsys.readouterr().out
    assert "Unreadable: 1" in out and "torn.jpg" in out and "Not ISIC 2017" in out
    assert "2 pairs" in out
    assert "train and test      1, of them 0 with the same bytes" in out
    assert "valid and test      1, of them 1 with the same bytes" in out
    leaks = pd.read_csv(tmp_path / "models" / "leaky" / "leaks.csv")
    assert leaks["splits"].tolist() == ["valid, test", "train, test"]
    assert Image.open(tmp_path / "models" / "leaky" / "leaks.png").size[0] > 500


def official_folder(root: Path, leave_out=()) -> Path:
    """Empty-handed pictures under the official names, linked to one file."""
    one = root / "one.jpg"
    Image.new("RGB", (40, 30)).save(one)
    for row in pd.read_csv(check.OFFICIAL).itertuples(index=False):
        if row.id not in leave_out:
            folder = root / "isic2017" / row.split / row[2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{row.id}.jpg").symlink_to(one)
    return root / "isic2017"


def test_the_official_list():
    table = pd.read_csv(check.OFFICIAL)
    counts = table.groupby(["split", "class"]).size().unstack()[list(CLASSES)]
    assert counts.loc["train"].tolist() == [374, 1372, 254]
    assert counts.loc["valid"].tolist() == [30, 78, 42]
    assert counts.loc["test"].tolist() == [117, 393, 90]
    assert table["id"].is_unique


def test_completeness(tmp_path):
    folder = official_folder(tmp_path, leave_out=("ISIC_0000003",))
    (folder / "test" / "melanoma" / "ISIC_0012258.jpg").rename(folder / "test" / "nevus" / "ISIC_0012258.jpg")
    Image.new("RGB", (20, 20)).save(folder / "train" / "nevus" / "mine.jpg")
    problems = check.compare_with_official(LesionData(folder)).set_index("id")["problem"]
    assert problems.to_dict() == {
        "ISIC_0000003": "missing",
        "mine": "not one of the official images",
        "ISIC_0012258": "in test/nevus, belongs in test/melanoma",
    }
    (folder / "train" / "nevus" / "mine.jpg").unlink()
    (folder / "test" / "nevus" / "ISIC_0012258.jpg").rename(folder / "test" / "melanoma" / "ISIC_0012258.jpg")
    (folder / "train" / "nevus" / "ISIC_0000003.jpg").symlink_to(tmp_path / "one.jpg")
    assert check.compare_with_official(LesionData(folder)).empty


def test_what_cannot_be_opened(tmp_path, capsys):
    assert check.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_pictures_of_one_photograph_get_one_number(data_folder):
    files = sorted((data_folder / "train" / "nevus").iterdir())[:4]
    twin = files[1].with_name("twin.jpg")
    Image.open(files[1]).transpose(Image.Transpose.ROTATE_180).save(twin, quality=90)
    numbers = photographs([str(file) for file in (*files, twin)])
    assert numbers[4] == numbers[1] and len(set(numbers)) == 4
    assert len(set(photographs([str(file) for file in files]))) == 4


def test_copies_are_found_however_many_and_however_plain(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(20):
        name = f"copy{number:02}.png"
        Image.new("RGB", (64, 64), (90, 60, 40)).save(tmp_path / name)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / f"other{number}.png")
    files = sorted(str(path) for path in tmp_path.iterdir())
    pairs = find_duplicates(files)
    assert {first for first, _ in zip(pairs["first"], pairs["second"])} == {files[0]}
    assert list(pairs["second"]) == files[1:20] and set(pairs["kind"]) == {"same bytes"}
    groups = [number >= 3 for number in range(24)]  # each copy with one of the other group
    pairs = find_duplicates(files, groups)
    assert set(pairs["first"]) | set(pairs["second"]) == set(files[:20])
    assert all(int(a[-6:-4]) < 3 <= int(b[-6:-4]) for a, b in zip(pairs["first"], pairs["second"]))


def test_all_training_copies_of_a_test_picture_are_leaks(data_folder):
    picture = Image.open(sorted((data_folder / "test" / "nevus").iterdir())[0])
    for number in range(20):  # no two files the same
        picture.save(data_folder / "train" / "nevus" / f"copy{number:02}.jpg", quality=75 + number)
    leaks = training_leaks(LesionData(data_folder))
    assert {Path(path).stem for path in leaks["train"]} == {f"copy{number:02}" for number in range(20)}
