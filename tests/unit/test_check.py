import pandas as pd
from PIL import Image

from derma import check
from derma.dataset import CLASSES
from derma.sample import draw_sample


def test_unreadable_images_and_leaks_between_splits(tmp_path, monkeypatch, capsys):
    leaky = tmp_path / "leaky"
    draw_sample(leaky, {"train": (2, 4, 2), "valid": (1, 2, 1), "test": (2, 3, 2)}, (128, 96), seed=3)
    train, test = (sorted((leaky / split / "nevus").iterdir()) for split in ("train", "test"))
    mirrored = Image.open(train[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(leaky / "test" / "nevus" / "planted.jpg", quality=80)
    (leaky / "valid" / "nevus" / "again.jpg").write_bytes(test[0].read_bytes())
    (leaky / "train" / "nevus" / "torn.jpg").write_bytes(b"no")
    monkeypatch.chdir(tmp_path)
    assert check.main(["nowhere"]) == 2 and capsys.readouterr().err.count("\n") == 1
    assert check.main(["leaky"]) == 0
    out = capsys.readouterr().out
    assert "Unreadable: 1" in out and "torn.jpg" in out and "Not ISIC 2017" in out and "one photograph: 2\n" in out
    assert "train and test      1, 0 with the same bytes" in out
    assert "valid and test      1, 1 with the same bytes" in out
    leaks = pd.read_csv(tmp_path / "models" / "leaky" / "leaks.csv")
    assert leaks["splits"].tolist() == ["valid, test", "train, test"]
    assert Image.open(tmp_path / "models" / "leaky" / "leaks.png").size[0] > 500


def test_differences_from_the_official_list():
    images = pd.read_csv(check.OFFICIAL)
    assert images.groupby(["split", "class"]).size().tolist() == [117, 393, 90, 374, 1372, 254, 30, 78, 42]
    images["path"] = "data/isic2017/somewhere/" + images["id"] + ".jpg"
    images["target"] = images["class"].map(CLASSES.index)
    assert check.compare_with_official(images).empty

    images.loc[images["id"] == "ISIC_0012258", "target"] = CLASSES.index("nevus")
    images = images[images["id"] != "ISIC_0000003"]
    more = pd.DataFrame({"path": ["mine.jpg", "a/ISIC_0000000.jpg"], "split": "train", "target": 1})
    problems = check.compare_with_official(pd.concat([images, more, more.assign(path="b.jpg", split="extra")]))
    assert problems["id"].tolist() == ["ISIC_0000000", "ISIC_0000003", "ISIC_0012258", "mine"]
    moved = "in test/nevus, belongs in test/melanoma"
    assert problems["problem"].tolist() == ["twice", "missing", moved, "not one of the official images"]
