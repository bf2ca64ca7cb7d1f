from pathlib import Path

from PIL import Image

from derma.dataset import LesionData, open_data
from derma.leaks import photographs, training_leaks


def test_all_training_copies_of_a_test_image_are_leaks(data_folder, capsys):
    image = Image.open(sorted((data_folder / "test" / "nevus").iterdir())[0])
    for number in range(21):  # no two files the same, and more than are compared with one image
        folder = data_folder / ("train", "valid")[number % 3 // 2]
        image.save(folder / "nevus" / f"copy{number:02}.jpg", quality=75 + number)
    images = LesionData(data_folder).images
    leaks = training_leaks(images, ("train", "valid"))
    assert {Path(path).stem for path in leaks["train"]} == {f"copy{number:02}" for number in range(21)}
    assert set(leaks["split"]) == {"test"}
    assert len(set(training_leaks(images, ("train",))["train"])) == 14
    open_data(data_folder, drop_leaks=True, trained=("train", "valid"))
    assert "Removed images that show a photograph of another split: 21\n" in capsys.readouterr().out


def test_images_of_one_photograph_get_one_number(data_folder):
    files = sorted(map(str, (data_folder / "train" / "nevus").iterdir()))[:4]
    Image.open(files[1]).transpose(Image.Transpose.ROTATE_180).save(data_folder / "twin.jpg", quality=90)
    assert photographs([*files, str(data_folder / "twin.jpg")]).tolist() == [0, 1, 2, 3, 1]
