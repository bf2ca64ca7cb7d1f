import numpy as np
import pytest
from PIL import Image

from derma.dataset import CLASSES
from derma.duplicates import SURE_FINE, find_duplicates, orient
from derma.sample import draw_image


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list:
    """The files of sixty drawn photographs, all different."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(60):
        image = draw_image(CLASSES[number % 3], np.random.default_rng((7, number)), (256, 192))
        image.save(folder / f"{number:02}.jpg", quality=90)
    return sorted(folder.iterdir())


def crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((round(0.02 * width), round(0.03 * height), round(0.97 * width), round(0.98 * height)))


def recolour(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(image, float) * (0.9, 1.05, 1.2) + 8, 0, 255).astype(np.uint8))


CHANGES = {
    "copied": None,
    "re-compressed": lambda image: image,
    "resized": lambda image: image.resize((180, 135), Image.Resampling.LANCZOS),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "mirrored and turned": lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    "cropped": crop,
    "cropped and mirrored": lambda image: crop(image).transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "recoloured": recolour,
}


def test_planted_duplicates_are_found_and_no_others(photographs, tmp_path):
    planted = {}
    for number, file in enumerate(photographs):
        name = list(CHANGES)[number // 6]
        target = tmp_path / f"{number:02} {name}.jpg"
        if name == "copied":
            target.write_bytes(file.read_bytes())
        else:
            CHANGES[name](Image.open(file)).save(target, quality=60)
        planted[str(file), str(target)] = name
    found = find_duplicates([*photographs, *sorted(tmp_path.iterdir())])
    pairs = list(zip(found["first"], found["second"]))
    assert set(pairs) == set(planted) and len(pairs) == 60
    assert [kind == "same bytes" for kind in found["kind"]] == [planted[pair] == "copied" for pair in pairs]
    assert ((found["kind"] == "suspected") == (found["fine"] < SURE_FINE)).all()


def test_orientation_says_how_to_turn_the_second(photographs, tmp_path):
    original = np.asarray(Image.open(photographs[1]).convert("L"))
    files = [tmp_path / f"{number}.png" for number in range(8)]
    for number, file in enumerate(files):
        Image.fromarray(orient(original, number).copy()).save(file)
    found = find_duplicates([photographs[1], *files], groups=[0] + [1] * 8).sort_values("second")
    assert found["second"].tolist() == [str(file) for file in files]
    for file, orientation in zip(files, found["orientation"]):
        assert np.array_equal(orient(np.asarray(Image.open(file)), orientation), original)


def test_many_copies_of_a_plain_image(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.new("RGB", (64, 64), (90, 60, 40)).save(tmp_path / f"copy{number:02}.png")
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / f"other{number}.png")
    files = sorted(str(path) for path in tmp_path.iterdir())
    pairs = find_duplicates(files)
    assert set(pairs["first"]) == {files[0]}
    assert list(pairs["second"]) == files[1:20] and set(pairs["kind"]) == {"same bytes"}
    pairs = find_duplicates(files, groups=[number >= 3 for number in range(24)])
    assert set(pairs["first"]) | set(pairs["second"]) == set(files[:20])
    assert all(int(a[-6:-4]) < 3 <= int(b[-6:-4]) for a, b in zip(pairs["first"], pairs["second"]))
