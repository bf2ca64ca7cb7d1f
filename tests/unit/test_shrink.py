import errno
import io
import os
import struct
import zipfile
import zlib
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageCms

from derma import shrink as module
from derma.sample import draw_image
from derma.shrink import main, shrink
from derma.web import Refused

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


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_modes(mode):
    expected = LARGE.resize((384, 256)).convert(mode)
    assert difference(shrink(encoded(expected, "PNG")), expected.convert("RGB")) < 3


def deep_png(values) -> bytes:
    """A PNG of (H, W, 3) 16-bit values, which Pillow does not write."""
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    chunks = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (b"IHDR" + head, b"IDAT" + rows, b"IEND")
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("encode", "most", "reason"),
    [
        (lambda grey: encoded(Image.fromarray(grey.astype(np.float32)), "TIFF"), 1, "floating-point"),
        (lambda grey: encoded(Image.fromarray(grey.astype(np.int32)), "TIFF"), 65535, "32-bit"),
        (lambda grey: encoded(Image.fromarray(grey.astype(np.uint16)), "TIFF"), 65535, None),
        (lambda grey: encoded(Image.fromarray(grey.astype(np.uint16)), "TIFF", tiffinfo={262: 0}), 65535, "white as"),
        (lambda grey: encoded(Image.fromarray(grey.astype(np.uint16)), "PNG"), 16383, "almost black"),
        (lambda grey: deep_png(np.stack([grey] * 3, 2)), 65535, None),
        (lambda grey: deep_png(np.stack([grey] * 3, 2)), 4095, "almost black"),
        (lambda grey: b"P6 64 64 4095 " + np.repeat(grey.astype(">u2"), 3).tobytes(), 4095, None),
        (lambda grey: b"P6 64 64 65535 " + np.repeat(grey.astype(">u2"), 3).tobytes(), 4095, "almost black"),
        (lambda grey: b"P5 64 64 1023 " + grey.astype(">u2").tobytes(), 1023, None),
    ],
)
def test_values_of_more_than_8_bits(encode, most, reason):
    """Scaled by what the file says that it holds, or refused with the reason."""
    grey = np.linspace(0, 1, 4096).reshape(64, 64)
    if reason:
        with pytest.raises(Refused, match=reason):
            shrink(encode(grey * most))
    else:
        expected = Image.fromarray((grey * 255).astype(np.uint8)).convert("RGB")
        assert difference(shrink(encode(grey * most)), expected) < 1


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
def test_a_folder_or_zip_as_people_have_them(tmp_path, capsys, zipped):
    """Windows names, masks, links, pipes, bytes that are not UTF-8, names that do not fit, files of file managers."""
    whole, originals, out = encoded(LARGE, quality=95), tmp_path / "originals", tmp_path / "deep" / "out"
    made = {"train/nevus/a.jpg", "train/nevus/b.jpg", "test/_DSC1.jpg", "test/c.jpg", "test/d.jpg/e.jpg"}
    files = {name: (whole, None) for name in made - {"train/nevus/b.jpg"}} | {"train\\nevus\\b.JPEG": (whole, None)}
    ignored = "._a.jpg @eaDir/a.jpg __MACOSX/a.jpg Thumbs.db test/.ipynb_checkpoints/a.jpg #recycle/a.jpg"
    files |= dict.fromkeys(ignored.split(), (whole, None))
    files |= {  # and why they are refused
        "test/truncated.jpg": (whole[: len(whole) // 2], "truncated"),
        "test/html.jpg": (b"<html>404</html>", "not an image"),
        "test/bomb.ppm": (b"P6 20000 20000 255 ", "bomb"),
        "test/notes.txt": (b"hello", "not an image by its name"),
        "train/nevus/a.png": (whole, "the same name as train/nevus/a.jpg"),
        "test/d.png": (whole, "the same name as test/d.jpg/e.jpg"),
        f"test/{'n' * 251}.jpg": (whole, "name too long"),
    }
    for name in ("ISIC_1_superpixels", "ISIC_1_Segmentation", "a-mask 2", "ISIC_1_attribute_streaks", "IMD002_lesion"):
        files[f"test/{name}.png"] = (whole, "a mask by its name")
    if zipped:
        files |= dict.fromkeys(("../escape.jpg", "/absolute.jpg", "C:/windows.jpg"), (whole, "outside"))
        files |= {"test\\": (b"", None), "train/nevus/a.jpg/f.jpg": (whole, "the same name as train/nevus/a.jpg")}
        with zipfile.ZipFile(originals, "w") as archive:
            for name, (content, _) in files.items():
                archive.writestr(name, content)
    else:
        for name, (content, _) in files.items():
            (originals / name).parent.mkdir(parents=True, exist_ok=True)
            (originals / name).write_bytes(content)
        (originals / "test/loop").symlink_to(originals)
        (originals / "test/gone.jpg").symlink_to(".git/annex/objects/gone.jpg")
        os.mkfifo(originals / "test/pipe.jpg")
        (originals / os.fsdecode(b"test/b\xf6se.jpg")).write_bytes(b"")
        files |= {"test/loop": (b"", "a link to"), "test/gone.jpg": (b"", "is missing")}
        files |= {"test/pipe.jpg": (b"", "a pipe"), r"test/b\udcf6se.jpg": (b"", "not an image")}
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "g.jpg").write_bytes(whole)
        (originals / "linked").symlink_to(tmp_path / "elsewhere")
        made |= {"linked/g.jpg"}
    for _ in range(2):  # the second time it continues where it stopped
        assert main([str(originals), str(out)]) == 0 and f"{len(made)} images" in capsys.readouterr().out
        assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == made | {"refused.csv"}
        report = pd.read_csv(out / "refused.csv").set_index("file")["reason"]
        assert set(report.index) == {name for name, (_, reason) in files.items() if reason}
        assert all(files[name][1] in reason for name, reason in report.items())
        with Image.open(out / "test/c.jpg") as small:
            assert small.size == (384, 256) and small.layer[0][1:3] == (1, 1)  # no chroma subsampling
        (out / "test/c.jpg").unlink()
    assert not list(tmp_path.rglob("escape.jpg"))


def test_wrong_originals_and_places(tmp_path, monkeypatch, capsys):
    (tmp_path / "torn.zip").write_bytes(b"PK\3\4")
    with zipfile.ZipFile(tmp_path / "name.zip", "w") as archive:
        archive.writestr("böse.jpg", b"")
    (tmp_path / "name.zip").write_bytes((tmp_path / "name.zip").read_bytes().replace("ö".encode(), b"\xf6\xf6"))
    (tmp_path / "empty").mkdir()
    says = {"nowhere": "No such file", "torn.zip": "not a zip", "name.zip": "can't decode", "empty": "no image"}
    for name, message in (says | {".": "one inside the other"}).items():
        assert main([str(tmp_path / name), str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    LARGE.save(tmp_path / "empty" / "a.jpg")
    monkeypatch.setattr(module, "write_bytes", Mock(side_effect=OSError(errno.ENOSPC, "No space left")))
    assert main([str(tmp_path / "empty"), str(tmp_path / "out")]) == 2 and "No space" in capsys.readouterr().err
