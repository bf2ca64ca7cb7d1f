"""Shrink originals to what a network looks at: from a folder or a zip of large pictures to small JPEGs.

    python -m derma.shrink ORIGINALS OUT                # a folder or a zip; keeps the folders inside it
    python -m derma.shrink ORIGINALS OUT --short-side 512

A 12-megapixel JPEG takes a quarter of a second to decode, and a network sees 224 pixels of it. So every picture is
decoded once, at 1/2, 1/4 or 1/8 of its size where that is enough (Pillow's ``draft`` mode: the JPEG's own downscaling),
resized to a short side of 256 pixels, and written as a JPEG of quality 95 without chroma subsampling. What is there
already is not done again; what cannot be read is named in ``OUT/refused.csv`` and left out.
"""

from __future__ import annotations

import io
import os
import re
import signal
import stat
import sys
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import pandas as pd
from filelock import FileLock
from filelock import Timeout as LockTimeout
from PIL import Image, ImageCms, ImageOps
from tqdm import tqdm

from derma.commands import Parser, whole_number

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm"}
MOST_BYTES = 2**29  # of one member of a zip, unpacked
UNFINISHED = re.compile(r".+\.(jpg|csv|txt)\.\d+\.part")  # what a killed process leaves: a name, its number, and this
SHORT_SIDE = 256
QUALITY = 95


class Refused(Exception):
    """A picture that cannot be shrunk; the message is the reason, in a phrase."""


def _to_srgb(picture: Image.Image) -> Image.Image:
    """Return an 8-bit sRGB picture: colour profile applied, CMYK and palettes converted, transparency put on white."""
    if picture.mode.startswith(("I;16", "I", "F")):  # 16-bit greys; a plain conversion would clip them to white
        scale = 1 / 257 if picture.getextrema()[1] > 255 else 1
        return picture.convert("F").point(lambda value: value * scale + 0).convert("L").convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        colours = _to_srgb(picture.convert("RGB"))  # keeps the profile
        return Image.composite(colours, Image.new("RGB", picture.size, "white"), picture.getchannel("A"))
    profile = picture.info.get("icc_profile")
    if profile and picture.mode in ("RGB", "CMYK", "L"):
        # A broken profile is no reason to lose the picture: it is then read as if it had none.
        with suppress(ImageCms.PyCMSError, OSError, TypeError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return picture.convert("RGB")


def shrink(source: str | os.PathLike | bytes, short_side: int = SHORT_SIDE) -> Image.Image:
    """Decode one picture and make it small.

    Args:
        source: a picture's path, or the bytes of its file.
        short_side: length of the result's shorter side in pixels; a smaller picture keeps its size.

    Returns:
        An upright 8-bit RGB picture in sRGB with the original's aspect ratio.

    Raises:
        Refused: truncated, no picture, or more pixels than twice Pillow's limit (179 million).
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice its limit is refused, as an error
            with Image.open(file) as picture:
                picture.draft(None, (short_side, short_side))
                picture.load()
                small = _to_srgb(ImageOps.exif_transpose(picture))
        scale = short_side / min(small.size)
        if scale >= 1:
            return small
        size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
        return small.resize(size, Image.Resampling.LANCZOS)
    except Image.UnidentifiedImageError:
        raise Refused("not a picture") from None
    except Image.DecompressionBombError:
        raise Refused(f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels: a decompression bomb?") from None
    # A damaged file can surface as nearly anything in a decoder.
    except Exception as error:
        raise Refused(str(error) or type(error).__name__) from None


class Busy(Exception):
    """Another process writes into the folder; the message is one sentence that says what to do."""


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Keep a folder to this process, and clear away what a killed one left half written.

    Args:
        folder: made if it does not exist, and removed again if nothing has come into it. The lock is ``.<name>.lock``
            beside it, and goes with the process.

    Raises:
        Busy: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.absolute().parent / f".{folder.absolute().name}.lock", timeout=0):
            for partial in folder.rglob("*.part"):
                if UNFINISHED.fullmatch(partial.name) and partial.is_file():  # and nobody else's
                    partial.unlink()
            try:
                yield
            finally:
                if not any(folder.iterdir()):  # an empty folder would be taken for a data folder that lacks its splits
                    folder.rmdir()
    except LockTimeout:
        raise Busy(
            f"{folder}: another process is writing into it; wait for it to end, or name another folder."
        ) from None


def is_here(file: Path) -> bool:
    """Whether a picture has been written; an empty file is what a power cut may leave of one."""
    return file.is_file() and file.stat().st_size > 0


def write_jpeg(picture: Image.Image, file: Path) -> None:
    """Write a JPEG of quality 95 without chroma subsampling, all or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    picture.save(partial, "JPEG", quality=QUALITY, subsampling=0)
    os.replace(partial, file)


# --- a whole folder or zip -------------------------------------------------------------------------------------------


def unsafe(member: zipfile.ZipInfo) -> str | None:
    """Return why a zip's member must not be unpacked, or None."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        return "points outside the folder"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link"
    if member.flag_bits & 1:
        return "encrypted"
    if member.file_size > MOST_BYTES:
        return f"{member.file_size:,} bytes unpacked: a zip bomb?"
    return None


def _find(originals: Path) -> Iterator[tuple[str, str | None]]:
    """Yield each file's name below the originals, with a reason where it is refused unread, in a fixed order."""
    if originals.is_dir():
        members = [(path.relative_to(originals).as_posix(), None) for path in originals.rglob("*") if path.is_file()]
    else:
        with zipfile.ZipFile(originals) as archive:
            members = [(each.filename, unsafe(each)) for each in archive.infolist() if not each.is_dir()]
    for name, reason in sorted(members):
        path = PurePosixPath(name)
        if any(part.startswith((".", "__MACOSX")) and part != ".." for part in path.parts):
            continue  # what file managers leave
        if reason is None and path.stem.endswith("_superpixels"):
            reason = "a mask of part 2 of the challenge, not a picture"
        elif reason is None and path.suffix.lower() not in SUFFIXES:
            reason = "not a picture by its name"
        yield name, reason


def _shrink_one(job: tuple[Path, str, Path, int]) -> str | None:
    """Shrink one picture in a worker process; returns the reason if it was refused."""
    originals, name, target, short_side = job
    try:
        picture = shrink(originals / name if originals.is_dir() else _unpack(originals, name), short_side)
    except Refused as refused:
        return str(refused)
    write_jpeg(picture, target)
    return None


def _unpack(originals: Path, name: str) -> bytes:
    """Return a member of a zip."""
    with zipfile.ZipFile(originals) as archive:
        try:
            return archive.read(name)
        # Each method of compression has errors of its own: zlib.error, lzma.LZMAError, bzip2's OSError and more.
        except Exception as error:
            raise Refused(f"damaged in the zip ({error or type(error).__name__})") from None


def shrink_all(
    originals: str | os.PathLike, out: str | os.PathLike, short_side: int = SHORT_SIDE, workers: int | None = None
) -> pd.DataFrame:
    """Shrink every picture of a folder or zip, on all cores, continuing where an earlier call stopped.

    Args:
        originals: a folder, looked through with all folders in it, or a zip; it is not changed.
        out: the pictures go there under the same names, with the ending ``.jpg``.
        short_side: in pixels.
        workers: processes; all cores by default.

    Returns:
        A row for each file that was refused, ``file`` and ``reason``; the same as in ``out/refused.csv``.

    Raises:
        FileNotFoundError, zipfile.BadZipFile: there are no such originals.
        ValueError: one of the two folders lies in the other.
        Busy: another process writes into ``out``.
    """
    originals, out = Path(originals), Path(out)
    if not originals.exists():
        raise FileNotFoundError(f"{originals}: no such folder or zip; name the originals.")
    inner, outer = originals.resolve(), out.resolve()
    if originals.is_dir() and (inner.is_relative_to(outer) or outer.is_relative_to(inner)):
        raise ValueError(f"{out}: this and {originals} lie one in the other; name a folder apart from the originals.")
    with writing_into(out):
        return _shrink_into(originals, out, short_side, workers)


def _shrink_into(originals: Path, out: Path, short_side: int, workers: int | None) -> pd.DataFrame:
    refused, jobs, taken = [], [], {}
    for name, reason in _find(originals):
        target = out / PurePosixPath(name).with_suffix(".jpg")
        if reason is None and target in taken:
            reason = f"would overwrite {taken[target]}, which has the same name"
        if reason is not None:
            refused.append((name, reason))
            continue
        taken[target] = name
        if not is_here(target):
            jobs.append((originals, name, target, short_side))
    # Ctrl-C is this process's to answer; the workers end with it.
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        # The jobs are names alone: what waits in the queue takes no memory to speak of.
        results = pool.map(_shrink_one, jobs, chunksize=4)
        for job, reason in zip(jobs, tqdm(results, total=len(jobs), unit="picture", leave=False, file=sys.stdout)):
            if reason is not None:
                refused.append((job[1], reason))
    report = pd.DataFrame(sorted(refused), columns=["file", "reason"])
    report.to_csv(out / "refused.csv", index=False)
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.shrink``; returns the exit code, 2 if nothing could be shrunk."""
    parser = Parser(prog="python -m derma.shrink", description="Shrink originals to small JPEGs.")
    parser.add_argument("originals", type=Path, help="a folder or a zip of pictures")
    parser.add_argument("out", type=Path, help="where the small ones go; what is there already is kept")
    parser.add_argument(
        "--short-side", type=whole_number(16, 8192), default=SHORT_SIDE, metavar="PIXELS", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    try:
        report = shrink_all(options.originals, options.out, options.short_side)
    except (FileNotFoundError, ValueError, Busy) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on where it stopped.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or options.out}: {error.strerror}; name another place.", file=sys.stderr)
        return 2
    except zipfile.BadZipFile as error:
        print(f"{options.originals}: neither a folder nor a zip ({error}); name the originals.", file=sys.stderr)
        return 2
    there = sum(1 for _ in options.out.rglob("*.jpg"))
    print(f"{options.out}: {there:,} pictures.")
    if len(report):
        print(f"Refused: {len(report):,}, listed in {options.out / 'refused.csv'}; the first of them:")
        print(report.head(10).to_string(index=False))
    if not there:
        print(
            f"{options.originals}: no picture in there could be read; name a folder or zip of pictures.",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
