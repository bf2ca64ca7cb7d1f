import io
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageCms

from derma.sample import draw_image
from derma.shrink import main, shrink

LARGE = draw_image("nevus", np.random.default_rng(3), (1152, 768))


def encoded(image, form="JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def difference(first, second) -> float:
    assert first.size == second.size and first.mode == second.mode == "RGB"
    return np.abs(np.asarray(first, float) - np.asarray(second, float)).mean()


def test_sizes_and_orientation():
    whole, exif = encoded(LARGE, quality=95), Image.Exif()
    assert difference(shrink(whole), LARGE.resize((384, 256), Image.Resampling.LANCZOS)) < 1.5
    assert shrink(encoded(Image.new("RGB", (300, 200)))).size == (300, 200)  # a small image keeps its size
    exif[0x0112] = 6  # the camera was turned
    turned = shrink(encoded(LARGE, quality=95, exif=exif))
    assert difference(turned, shrink(whole).transpose(Image.Transpose.ROTATE_270)) < 1.5


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "I;16"])
def test_modes(mode):
    expected = LARGE.resize((384, 256)).convert("L" if mode == "I;16" else mode)
    image = Image.fromarray(np.asarray(expected, np.uint16) * 257) if mode == "I;16" else expected
    assert difference(shrink(encoded(image, "PNG")), expected.convert("RGB")) < 3


def test_colour_profiles_are_applied_and_transparency_is_put_on_white():
    image, clear = Image.new("RGB", (64, 64), (120, 80, 60)), Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    assert shrink(encoded(clear, "PNG")).getpixel((5, 5)) == (255, 255, 255)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile with the primaries of red and blue exchanged, by exchanging the names of their tags.
    swapped = srgb.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
    for profile, expected in ((srgb, (120, 80, 60)), (swapped, (60, 80, 120)), (b"broken", (120, 80, 60))):
        small = shrink(encoded(image, quality=100, icc_profile=profile))
        assert small.getpixel((9, 9)) == pytest.approx(expected, abs=3)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_or_zip_whose_members_point_elsewhere(tmp_path, capsys, zipped):
    whole, originals, out = encoded(LARGE, quality=95), tmp_path / "originals", tmp_path / "deep" / "out"
    files = {name: (whole, None) for name in ("train/nevus/a.jpg", "train/nevus/b.JPEG", "test/c.jpg")}
    files |= {  # and why they are refused
        "test/truncated.jpg": (whole[: len(whole) // 2], "truncated"),
        "test/html.jpg": (b"<html>404</html>", "not an image"),
        "test/bomb.ppm": (b"P6 20000 20000 255 ", "bomb"),
        "test/notes.txt": (b"hello", "not an image by its name"),
        "test/ISIC_1_superpixels.png": (b"mask", "mask"),
        "train/nevus/a.png": (whole, "a.jpg, which has the same name"),
    }
    if zipped:
        files |= dict.fromkeys(("../escape.jpg", "/absolute.jpg", "C:\\windows.jpg"), (whole, "outside"))
        with zipfile.ZipFile(originals, "w") as archive:
            for name, (content, _) in files.items():
                archive.writestr(name, content)
    else:
        for name, (content, _) in files.items():
            (originals / name).parent.mkdir(parents=True, exist_ok=True)
            (originals / name).write_bytes(content)
    for _ in range(2):  # the second time it continues where it stopped
        assert main([str(originals), str(out)]) == 0 and "3 images" in capsys.readouterr().out
        names = {path.relative_to(out).as_posix() for path in out.rglob("*.jpg")}
        assert names == {"test/c.jpg", "train/nevus/a.jpg", "train/nevus/b.jpg"}
        report = pd.read_csv(out / "refused.csv").set_index("file")["reason"]
        assert set(report.index) == {name for name, (_, reason) in files.items() if reason}
        assert all(files[name][1] in reason for name, reason in report.items())
        with Image.open(out / "test/c.jpg") as small:
            assert small.size == (384, 256) and small.layer[0][1:3] == (1, 1)  # no chroma subsampling
        (out / "test/c.jpg").unlink()
    assert not list(tmp_path.rglob("escape.jpg"))


def test_wrong_originals_and_places(tmp_path, capsys):
    (tmp_path / "torn.zip").write_bytes(b"PK\3\4")
    (tmp_path / "empty").mkdir()
    says = {"nowhere": "No such file", "torn.zip": "not a zip", "empty": "no image", ".": "one inside the other"}
    for name, message in says.items():
        assert main([str(tmp_path / name), str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
