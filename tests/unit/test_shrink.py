import io
import stat
import struct
import zipfile
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageCms

from derma.sample import draw_image
from derma.shrink import main, shrink, shrink_all, unsafe


@pytest.fixture(scope="module")
def large():
    """A drawn photograph that is three times too large."""
    return draw_image("nevus", np.random.default_rng(3), (1152, 768))


def encoded(image, form="JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def difference(first, second) -> float:
    assert first.size == second.size and first.mode == second.mode == "RGB"
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


def test_sizes_and_orientation(large):
    whole = encoded(large, quality=95)
    expected = Image.open(io.BytesIO(whole)).resize((384, 256), Image.Resampling.LANCZOS)
    assert difference(shrink(whole), expected) < 1.5
    assert shrink(whole, 100).size == (150, 100)
    assert shrink(encoded(Image.new("RGB", (300, 200)))).size == (300, 200)  # a small image keeps its size
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    turned = shrink(encoded(large, quality=95, exif=exif))
    assert difference(turned, shrink(whole).transpose(Image.Transpose.ROTATE_270)) < 1.5


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_modes(large, mode):
    large = large.resize((384, 256))
    if mode == "I;16":
        data = encoded(Image.fromarray(np.asarray(large.convert("L"), np.uint16) * 257), "PNG")
        expected = large.convert("L").convert("RGB")
    elif mode == "CMYK":
        data, expected = encoded(large.convert("CMYK"), quality=95), large
    else:
        data, expected = encoded(large.convert(mode), "PNG"), large.convert(mode).convert("RGB")
    assert difference(shrink(data), expected) < 3


def test_colour_profiles_are_applied_and_transparency_is_put_on_white():
    image, clear = Image.new("RGB", (64, 64), (120, 80, 60)), Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    assert shrink(encoded(clear, "PNG")).getpixel((5, 5)) == (255, 255, 255)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile with the primaries of red and blue exchanged, by exchanging the names of their tags.
    swapped = srgb.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
    for profile, expected in ((srgb, (120, 80, 60)), (swapped, (60, 80, 120)), (b"broken", (120, 80, 60))):
        jpeg = encoded(image, quality=100, icc_profile=profile)
        for file in (jpeg, encoded(image.convert("RGBA"), "PNG", icc_profile=profile)):
            assert shrink(file).getpixel((9, 9)) == pytest.approx(expected, abs=3)


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 400 million pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0"), b"IEND")
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.fixture(scope="module")
def originals(tmp_path_factory, large):
    """A folder with three good images, every kind of bad file, and the reasons for refusing those."""
    root = tmp_path_factory.mktemp("shrink") / "originals"
    whole = encoded(large, quality=95)
    bad = {
        "test/truncated.jpg": (whole[: len(whole) // 2], "truncated"),
        "test/html.jpg": (b"<html>404</html>", "not an image"),
        "test/empty.png": (b"", "not an image"),
        "test/bomb.png": (bomb(), "bomb"),
        "test/notes.txt": (b"hello", "not an image by its name"),
        "test/ISIC_1_superpixels.png": (encoded(Image.new("L", (9, 9)), "PNG"), "mask"),
        "test/torn.png": (encoded(large.resize((99, 99)), "PNG")[:5000], "truncated"),
        "train/nevus/a.png": (whole, "a.jpg, which has the same name"),
    }
    good = {name: (whole, None) for name in ("train/nevus/a.jpg", "train/nevus/b.JPEG", "test/c.jpg")}
    for name, (content, _) in (good | bad | {".DS_Store": (b"x", None)}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root, {name: reason for name, (_, reason) in bad.items()}


def assert_shrunk(out, reasons):
    images = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.jpg"))
    assert images == ["test/c.jpg", "train/nevus/a.jpg", "train/nevus/b.jpg"]
    with Image.open(out / "test/c.jpg") as small:
        assert small.size == (384, 256) and small.layer[0][1:3] == (1, 1)  # no chroma subsampling
    report = pd.read_csv(out / "refused.csv").set_index("file")["reason"]
    assert set(report.index) == set(reasons)
    assert all(reason in report[name] for name, reason in reasons.items())
    assert not list(out.rglob("*.part"))


def test_a_folder(originals, tmp_path, capsys):
    root, reasons = originals
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert main([str(root), str(tmp_path / "out")]) == 0
    assert_shrunk(tmp_path / "out", reasons)
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert "3 images" in capsys.readouterr().out
    shrink_all(root, tmp_path / "one", workers=1)  # the number of processes does not matter
    for file in (tmp_path / "out").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "one" / file.relative_to(tmp_path / "out")).read_bytes()


def test_a_zip_whose_members_point_elsewhere(originals, tmp_path):
    root, reasons = originals
    outside = ("../escape.jpg", "/absolute.jpg", "C:\\windows.jpg")
    with zipfile.ZipFile(tmp_path / "originals.zip", "w") as target:
        for path in sorted(root.rglob("*.*")):
            target.write(path, path.relative_to(root))
        for name in outside:
            target.writestr(name, (root / "test/c.jpg").read_bytes())
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(link, "/etc/passwd")
    shrink_all(tmp_path / "originals.zip", tmp_path / "deep" / "out")
    assert_shrunk(tmp_path / "deep" / "out", reasons | dict.fromkeys(outside, "outside") | {"link.jpg": "a link"})
    assert not list(tmp_path.rglob("escape.jpg"))


def test_encrypted_members_and_bombs_are_refused_unread():
    member = zipfile.ZipInfo("a.jpg")
    assert unsafe(member) is None
    member.file_size = 2**29 + 1
    assert unsafe(member).endswith("unpacked: a zip bomb?")
    member.flag_bits = 1
    assert unsafe(member) == "encrypted"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_is_named_and_the_rest_goes_on(tmp_path, large, method):
    archive, image = tmp_path / "bad.zip", encoded(large.resize((300, 200)), "BMP")
    with zipfile.ZipFile(archive, "w", method) as target:
        target.writestr("a.bmp", image)
        target.writestr("b.bmp", image)
    content = bytearray(archive.read_bytes())
    content[200:240] = b"\xff" * 40
    archive.write_bytes(content)
    report = shrink_all(archive, tmp_path / "out")
    assert report["file"].tolist() == ["a.bmp"] and report["reason"][0].startswith("damaged in the zip")
    assert (tmp_path / "out" / "b.jpg").exists()


def test_it_continues_where_it_stopped_and_deletes_its_own_leftovers_only(originals, tmp_path):
    root, out = originals[0], tmp_path / "out"
    shrink_all(root, out)
    (out / "test" / "c.jpg").unlink()
    (out / "train" / "nevus" / "b.jpg").write_bytes(b"")  # what a power cut leaves
    for name in ("movie.mkv.part", "test/c.jpg.part"):
        (out / name).write_bytes(b"half")
    kept = (out / "train/nevus/a.jpg").stat().st_mtime_ns
    shrink_all(root, out)
    assert (out / "train/nevus/a.jpg").stat().st_mtime_ns == kept
    (out / "movie.mkv.part").unlink()
    assert_shrunk(out, originals[1])


@pytest.mark.parametrize("out", ["in", "in/small", "."])
def test_originals_and_small_ones_are_kept_apart(tmp_path, large, capsys, out):
    (tmp_path / "in").mkdir()
    large.save(tmp_path / "in" / "a.jpg")
    assert main([str(tmp_path / "in"), str(tmp_path / out)]) == 2
    assert "one inside the other; name a separate folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.jpg"]


def test_missing_originals(tmp_path, capsys):
    (tmp_path / "torn.zip").write_bytes(b"PK\3\4")
    (tmp_path / "empty").mkdir()
    for name, says in (("nowhere", "no such folder"), ("torn.zip", "neither a folder nor"), ("empty", "no image")):
        assert main([str(tmp_path / name), str(tmp_path / "out")]) == 2
        assert f"{name}: {says}" in capsys.readouterr().err
