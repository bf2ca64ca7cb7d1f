import os

import numpy as np
import pandas as pd
from PIL import Image

from derma import check
from derma.dataset import CLASSES


def test_unreadable_images_and_leaks_between_splits(data_folder, monkeypatch, capsys):
    """A name that is not UTF-8 is escaped in leaks.csv, and drawn on its sheet."""
    train, test = (sorted((data_folder / split / "nevus").iterdir()) for split in ("train", "test"))
    Image.open(train[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(test[0].with_name("planted.jpg"), quality=80)
    (data_folder / "valid" / "nevus" / os.fsdecode(b"b\xf6se.jpg")).write_bytes(test[0].read_bytes())
    train[0].with_name("torn.jpg").write_bytes(b"no")
    monkeypatch.chdir(data_folder.parent)
    assert check.main(["nowhere"]) == 2 and capsys.readouterr().err.count("\n") == 1
    assert check.main(["tiny"]) == 0
    out = capsys.readouterr().out
    assert "Not usable: 1" in out and "torn.jpg" in out and "Not ISIC 2017" in out and "one photograph: 2\n" in out
    assert "train and test      1, 0 with the same" in out and "valid and test      1, 1 with the same" in out
    leaks = pd.read_csv("models/tiny/leaks.csv")
    assert leaks["splits"].tolist() == ["valid, test", "train, test"]
    assert r"valid/nevus/b\udcf6se.jpg" in "".join(leaks.loc[0, ["first", "second"]])
    sheet = np.asarray(Image.open("models/tiny/leaks.png"), float)[26:154]
    for x in (0, 264):
        assert np.corrcoef(sheet[:, x : x + 128].ravel(), sheet[:, x + 128 : x + 256].ravel())[0, 1] > 0.8


def test_differences_from_the_official_list():
    images = pd.read_csv(check.OFFICIAL)
    images["path"] = "data/isic2017/somewhere/" + images["id"] + ".jpg"
    images["target"] = images["class"].map(CLASSES.index)
    assert len(images) == 2750 and check.compare_with_official(images).empty
    images.loc[images["id"] == "ISIC_0012258", "target"] = 1
    images = images[images["id"] != "ISIC_0000003"]
    more = pd.DataFrame({"path": ["mine.jpg", "a/ISIC_0000000.jpg"], "split": "train", "target": 1})
    problems = check.compare_with_official(pd.concat([images, more]))
    assert problems["id"].tolist() == ["ISIC_0000000", "ISIC_0000003", "ISIC_0012258", "mine"]
    assert problems["problem"][:3].tolist() == ["twice", "missing", "in test/nevus, belongs in test/melanoma"]
