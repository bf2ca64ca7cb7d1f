import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from derma.dataset import LesionData
from derma.leaks import photographs, training_leaks


@pytest.mark.parametrize("trained", [("train",), ("train", "valid")])
def test_all_training_copies_of_a_test_image_are_leaks(data_folder, trained):
    image = Image.open(sorted((data_folder / "test" / "nevus").iterdir())[0])
    for number in range(20):  # no two files the same
        image.save(data_folder / trained[-1] / "nevus" / f"copy{number:02}.jpg", quality=75 + number)
    leaks = training_leaks(LesionData(data_folder).images, trained)
    assert {Path(path).stem for path in leaks["train"]} == {f"copy{number:02}" for number in range(20)}
    assert set(leaks["split"]) == {"test"} and (leaks["fine"] > 0.55).all()


def test_extra_images_are_trained_on(data_folder, tmp_path):
    original = sorted((data_folder / "valid" / "melanoma").iterdir())[0]
    (tmp_path / "extra" / "melanoma").mkdir(parents=True)
    shutil.copy(original, tmp_path / "extra" / "melanoma" / "another_name.jpg")
    leaks = training_leaks(LesionData(data_folder, extra=tmp_path / "extra").images)
    assert leaks.iloc[0][["train", "other", "split"]].tolist() == [
        str(tmp_path / "extra" / "melanoma" / "another_name.jpg"), str(original), "valid"
    ]  # fmt: skip


def test_images_of_one_photograph_get_one_number(data_folder):
    files = sorted((data_folder / "train" / "nevus").iterdir())[:4]
    twin = files[1].with_name("twin.jpg")
    Image.open(files[1]).transpose(Image.Transpose.ROTATE_180).save(twin, quality=90)
    numbers = photographs([str(file) for file in (*files, twin)])
    assert numbers[4] == numbers[1] and len(np.unique(numbers)) == 4
