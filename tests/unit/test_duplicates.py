import shutil
from functools import partial

import numpy as np
from PIL import Image

from derma.dataset import CLASSES
from derma.duplicates import SURE_FINE, copies, find_duplicates, orient, thumbnail
from derma.sample import draw_image

CHANGES = [
    lambda image: image.resize((180, 135)),
    lambda image: image.crop((5, 6, image.width - 8, image.height - 4)).transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    lambda image: Image.fromarray(np.clip(np.array(image) * (0.9, 1.05, 1.2) + 8, 0, 255).astype(np.uint8)),
    *(partial(Image.Image.transpose, method=method) for method in Image.Transpose),
]


def test_planted_duplicates_are_found_and_no_others(tmp_path):
    planted = {(str(tmp_path / "plain0.png"), str(tmp_path / f"plain{number}.png")) for number in (1, 2)}
    for number in range(3):
        Image.new("RGB", (64, 64), (90, 60, 40)).save(tmp_path / f"plain{number}.png")
    for number in range(44):
        first, second = tmp_path / f"{number:02}.jpg", tmp_path / f"{number:02}x.jpg"
        draw_image(CLASSES[number % 3], np.random.default_rng((7, number)), (256, 192)).save(first, quality=90)
        shutil.copy(first, second)
        if number % 11:
            CHANGES[number % 11 - 1](Image.open(first)).save(second, quality=60)
        planted.add((str(first), str(second)))
    found = find_duplicates(sorted(tmp_path.iterdir()))
    assert set(zip(found["first"], found["second"])) == planted and len(found) == len(planted)
    assert (found["kind"] == np.where(found["fine"] < SURE_FINE, "suspected", "near")).sum() == len(found) - 2 - 4
    for pair in found[found["kind"] != "same bytes"].itertuples():
        turned = orient(thumbnail(pair.second), pair.orientation)
        assert np.corrcoef(thumbnail(pair.first).ravel(), turned.ravel())[0, 1] > 0.8


def test_copies_across_groups():
    pairs = copies([b"a", b"b", b"a", b"a"], groups=[0, 1, 0, 1])
    assert pairs[["first", "second"]].to_numpy().tolist() == [[0, 3], [2, 3]]
