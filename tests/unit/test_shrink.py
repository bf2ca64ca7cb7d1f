import io
import shutil
import stat
import struct
import zipfile
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageCms

from derma import shrink as module
from derma.sample import draw_picture
from derma.shrink import Refused, main, shrink, shrink_all, unsafe


@pytest.fixture(scope="module")
def large():
    """A drawn photograph of 1.5 megapixels."""
    return draw_picture("nevus", np.random.default_rng(3), (1536, 1024))


def encoded(picture, form="JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def difference(first, second) -> float:
    assert first.size == second.size
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


def test_close_to_decoding_it_whole(large):
    data = encoded(large, quality=95)
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((384, 256), Image.Resampling.LANCZOS)
    assert difference(shrink(data), full) < 1.5
    assert shrink(data, 100).size == (150, 100)


def test_a_small_picture_keeps_its_size():
    assert shrink(encoded(Image.new("RGB", (300, 200)))).size == (300, 200)


def test_orientation(large):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    turned = shrink(encoded(large, quality=95, exif=exif))
    assert turned.size == (256, 384)
    assert difference(turned, shrink(encoded(large, quality=95)).transpose(Image.Transpose.ROTATE_270)) < 1.5


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_modes(large, mode):
    if mode == "I;16":
        grey = np.asarray(large.convert("L"), np.uint16) * 257
        data, expected = encoded(Image.fromarray(grey), "PNG"), large.convert("L").convert("RGB")
    elif mode == "CMYK":
        data, expected = encoded(large.convert("CMYK"), quality=95), large
    else:
        data = encoded(large.convert(mode), "PNG")
        expected = large.convert(mode).convert("RGB")
    result = shrink(data)
    assert result.mode == "RGB"
    assert difference(result, expected.resize((384, 256), Image.Resampling.LANCZOS)) < 3


def test_transparency_is_put_on_white():
    clear = Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    assert shrink(encoded(clear, "PNG")).getpixel((5, 5)) == (255, 255, 255)


def test_colour_profiles_are_applied():
    picture = Image.new("RGB", (64, 64), (120, 80, 60))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile with the primaries of red and blue exchanged, by exchanging the names of their tags.
    swapped = srgb.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
    for profile, expected in ((srgb, (120, 80, 60)), (swapped, (60, 80, 120)), (b"broken", (120, 80, 60))):
        for file in (
            encoded(picture, quality=100, icc_profile=profile),
            encoded(picture.convert("RGBA"), "PNG", icc_profile=profile),
        ):
            assert shrink(file).getpixel((9, 9)) == pytest.approx(expected, abs=3)


# --- bad files, each with its reason ---------------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 400 million pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0"), b"IEND")
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def bad_files(large) -> dict[str, tuple[bytes, str]]:
    whole = encoded(large, quality=95)
    return {
        "truncated.jpg": (whole[: len(whole) // 2], "truncated"),
        "html.jpg": (b"<html>404</html>", "not a picture"),
        "empty.png": (b"", "not a picture"),
        "bomb.png": (bomb(), "bomb"),
        "notes.txt": (b"hello", "not a picture by its name"),
        "ISIC_1_superpixels.png": (encoded(Image.new("L", (9, 9)), "PNG"), "mask"),
        "torn.png": (encoded(large, "PNG")[:5000], "truncated"),
    }


@pytest.fixture
def originals(tmp_path, large):
    """A folder with three good pictures in two folders, and every kind of bad file."""
    root = tmp_path / "originals"
    (root / "train" / "nevus").mkdir(parents=True)
    (root / "test").mkdir()
    for file in ("train/nevus/a.jpg", "train/nevus/b.JPEG", "test/c.jpg"):
        large.save(root / file, "JPEG", quality=95)
    for name, (content, _) in bad_files(large).items():
        (root / "test" / name).write_bytes(content)
    (root / ".DS_Store").write_bytes(b"x")
    return root


def check_out(out, large, extra=()):
    pictures = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.jpg"))
    assert pictures == ["test/c.jpg", "train/nevus/a.jpg", "train/nevus/b.jpg"]
    with Image.open(out / "test/c.jpg") as small:
        assert small.size == (384, 256) and small.layer[0][1:3] == (1, 1)  # no chroma subsampling
    report = pd.read_csv(out / "refused.csv").set_index("file")["reason"]
    expected = {f"test/{name}": reason for name, (_, reason) in bad_files(large).items()} | dict(extra)
    assert set(report.index) == set(expected)
    for name, reason in expected.items():
        assert reason in report[name]
    assert not list(out.rglob("*.part"))


def test_a_folder(originals, tmp_path, large, capsys):
    before = {path: path.read_bytes() for path in originals.rglob("*") if path.is_file()}
    assert main([str(originals), str(tmp_path / "out")]) == 0
    check_out(tmp_path / "out", large)
    assert before == {path: path.read_bytes() for path in originals.rglob("*") if path.is_file()}
    assert "3 pictures" in capsys.readouterr().out


def test_a_zip_whose_members_point_elsewhere(originals, tmp_path, large):
    archive = tmp_path / "originals.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(originals.rglob("*")):
            if path.is_file():
                target.write(path, path.relative_to(originals))
        picture = encoded(large)
        for name in ("../escape.jpg", "/absolute.jpg", "C:\\windows.jpg"):
            target.writestr(name, picture)
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(link, "/etc/passwd")
    outside = ("../escape.jpg", "/absolute.jpg", "C:\\windows.jpg")
    shrink_all(archive, tmp_path / "deep" / "out")
    check_out(tmp_path / "deep" / "out", large, [*((name, "outside") for name in outside), ("link.jpg", "a link")])
    assert not list(tmp_path.rglob("escape.jpg"))


def test_a_member_whose_checksum_is_wrong(tmp_path, large):
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("a.jpg", encoded(large))
        target.writestr("b.jpg", encoded(large))
    content = bytearray(archive.read_bytes())
    content[5000] ^= 0xFF  # in the middle of a.jpg, stored and not packed
    archive.write_bytes(content)
    report = shrink_all(archive, tmp_path / "out")
    assert report["file"].tolist() == ["a.jpg"] and "CRC" in report["reason"][0]
    assert (tmp_path / "out" / "b.jpg").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_packed_member_is_named_and_the_rest_goes_on(tmp_path, large, method):
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w", method) as target:
        target.writestr("a.bmp", encoded(large.resize((300, 200)), "BMP"))
        start = target.infolist()[0].header_offset + 200
        target.writestr("b.bmp", encoded(large.resize((300, 200)), "BMP"))
    content = bytearray(archive.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    archive.write_bytes(content)
    report = shrink_all(archive, tmp_path / "out")
    assert report["file"].tolist() == ["a.bmp"] and report["reason"][0].startswith("damaged in the zip")
    assert (tmp_path / "out" / "b.jpg").exists()


def test_encrypted_members_and_bombs_are_refused_unread():
    member = zipfile.ZipInfo("a.jpg")
    assert unsafe(member) is None
    member.flag_bits = 1
    assert unsafe(member) == "encrypted"
    bomb = zipfile.ZipInfo("b.jpg")
    bomb.file_size = 2**29 + 1
    assert unsafe(bomb).endswith("unpacked: a zip bomb?")


def test_only_ones_own_leftovers_are_cleared_away(tmp_path, large):
    (tmp_path / "in").mkdir()
    large.save(tmp_path / "in" / "a.jpg")
    out = tmp_path / "out"
    (out / "folder.part").mkdir(parents=True)
    (out / "movie.mkv.part").write_bytes(b"half a movie")
    (out / "a.jpg.123.part").write_bytes(b"half a picture")
    (out / "a.jpg").write_bytes(b"")  # what a power cut leaves
    shrink_all(tmp_path / "in", out)
    assert sorted(path.name for path in out.iterdir()) == ["a.jpg", "folder.part", "movie.mkv.part", "refused.csv"]
    assert (out / "a.jpg").stat().st_size > 1000


@pytest.mark.parametrize("out", ["in", "in/small", "."])
def test_originals_and_small_ones_are_kept_apart(tmp_path, large, capsys, out):
    (tmp_path / "in").mkdir()
    large.save(tmp_path / "in" / "a.jpg")
    assert main([str(tmp_path / "in"), str(tmp_path / out)]) == 2
    assert "lie one in the other; name a folder apart" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.jpg"]


def test_names_that_would_collide(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / "in" / name)
    report = shrink_all(tmp_path / "in", tmp_path / "out")
    assert report["file"].tolist() == ["a.png"] and "a.jpg" in report["reason"][0]


def test_it_continues_where_it_stopped(originals, tmp_path, large, monkeypatch):
    shrink_all(originals, tmp_path / "out")
    (tmp_path / "out" / "test" / "c.jpg").unlink()
    kept = (tmp_path / "out" / "train" / "nevus" / "a.jpg").stat().st_mtime_ns
    done = []
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda workers, **options: Here(done))
    shrink_all(originals, tmp_path / "out")
    assert "test/c.jpg" in done and not any(name.startswith("train") for name in done)
    assert (tmp_path / "out" / "train" / "nevus" / "a.jpg").stat().st_mtime_ns == kept
    check_out(tmp_path / "out", large)


class Here:
    """A pool that works in this process and notes what it was given."""

    def __init__(self, done):
        self.done = done

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def map(self, function, jobs, chunksize):
        for job in jobs:
            self.done.append(job[1])
            yield function(job)


def test_the_number_of_processes_does_not_matter(originals, tmp_path):
    shrink_all(originals, tmp_path / "one", workers=1)
    shrink_all(originals, tmp_path / "two", workers=2)
    for file in (tmp_path / "one").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


def test_what_is_not_there(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    (tmp_path / "torn.zip").write_bytes(b"PK\3\4")
    assert main([str(tmp_path / "torn.zip"), str(tmp_path / "out")]) == 2
    assert "torn.zip: neither a folder nor a zip" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), str(tmp_path / "out")]) == 2
    assert "no picture in there" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")


def test_reasons_are_phrases(large):
    with pytest.raises(Refused, match="truncated"):
        shrink(encoded(large)[:20000])
