"""Shrink originals to what a network sees: from a folder or a zip of large images to small JPEGs.

    python -m derma.shrink ORIGINALS OUT                # a folder or a zip; keeps the folders inside it
    python -m derma.shrink ORIGINALS OUT --short-side 512

A 12-megapixel JPEG takes a quarter of a second to decode, and a network sees 224 pixels of it. So each image is decoded
once, at 1/2, 1/4 or 1/8 of its size where that is enough (Pillow's ``draft`` mode: the JPEG's own downscaling). It is
resized to a short side of 256 pixels and written as a JPEG of quality 95 without chroma subsampling. Images that exist
in OUT are not shrunk again; unreadable ones are listed in ``OUT/refused.csv``.
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

from derma.commands import Parser, progress, whole_number
from derma.files import write_bytes, write_text

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm"}
MOST_BYTES = 2**29  # of one member of a zip, unpacked
UNFINISHED = re.compile(r".+\.(jpg|csv|txt)\.part")  # what a killed process leaves
SHORT_SIDE = 256
QUALITY = 95


class Refused(Exception):
    """An image that cannot be shrunk; the message is the reason, in a phrase."""


class Busy(Exception):
    """Another process writes into the folder; the message is one sentence that says what to do."""


def _to_srgb(image: Image.Image) -> Image.Image:
    """Return an 8-bit sRGB image: colour profile applied, CMYK and palettes converted, transparency put on white."""
    if image.mode.startswith(("I;16", "I", "F")):  # 16-bit greys; a plain conversion would clip them to white
        scale = 1 / 257 if image.getextrema()[1] > 255 else 1
        return image.convert("F").point(lambda value: value * scale + 0).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        colours = _to_srgb(image.convert("RGB"))  # keeps the profile
        return Image.composite(colours, Image.new("RGB", image.size, "white"), image.getchannel("A"))
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        with suppress(ImageCms.PyCMSError, OSError, TypeError, ValueError):  # a broken profile is ignored
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return image.convert("RGB")


def shrink(source: str | os.PathLike | bytes, short_side: int = SHORT_SIDE) -> Image.Image:
    """Decode an image's file, or the bytes of one, and make it small.

    Returns an upright 8-bit RGB image in sRGB with the original's aspect ratio and a shorter side of ``short_side``
    pixels; a smaller image keeps its size. Refused: truncated, no image, or more than 179 million pixels.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice its limit is refused, as an error
            with Image.open(file) as image:
                image.draft(None, (short_side, short_side))
                image.load()
                small = _to_srgb(ImageOps.exif_transpose(image))
        scale = short_side / min(small.size)
        if scale >= 1:
            return small
        return small.resize([max(1, round(side * scale)) for side in small.size], Image.Resampling.LANCZOS)
    except Image.UnidentifiedImageError:
        raise Refused("not an image") from None
    except Image.DecompressionBombError:
        raise Refused(f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels: a decompression bomb?") from None
    except Exception as error:  # a damaged file can raise nearly anything in a decoder
        raise Refused(str(error) or type(error).__name__) from None


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Lock a folder for this process (Busy if another one holds it), and delete what a killed one left unfinished.

    The folder is made if missing, and removed if it ends up empty. The lock is ``.<name>.lock`` in its parent folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.absolute().parent / f".{folder.absolute().name}.lock", timeout=0):
            for partial in folder.rglob("*.part"):
                if UNFINISHED.fullmatch(partial.name) and partial.is_file():
                    partial.unlink()
            try:
                yield
            finally:
                if not any(folder.iterdir()):  # an empty folder would be taken for a data folder that lacks its splits
                    folder.rmdir()
    except LockTimeout:
        raise Busy(f"{folder}: another process is writing into it; wait for it, or name another folder.") from None


def is_written(file: Path) -> bool:
    """Whether an image has been written; a power cut may leave an empty file."""
    return file.is_file() and file.stat().st_size > 0


def write_jpeg(image: Image.Image, file: Path) -> None:
    """Write a JPEG of quality 95 without chroma subsampling, all or nothing."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    write_bytes(buffer.getvalue(), file)


def unsafe(member: zipfile.ZipInfo) -> str | None:
    """Return why a zip's member must not be unpacked, or None."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        return "points outside the folder"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link"
    if member.flag_bits & 1:
        return "encrypted"
    return f"{member.file_size:,} bytes unpacked: a zip bomb?" if member.file_size > MOST_BYTES else None


def _find(originals: Path) -> Iterator[tuple[str, str | None]]:
    """Yield each file's name below the originals, with a reason if it is refused unread, in a fixed order."""
    if originals.is_dir():
        members = [(path.relative_to(originals).as_posix(), None) for path in originals.rglob("*") if path.is_file()]
    else:
        with zipfile.ZipFile(originals) as archive:
            members = [(each.filename, unsafe(each)) for each in archive.infolist() if not each.is_dir()]
    for name, reason in sorted(members):
        path = PurePosixPath(name)
        if any(part.startswith((".", "__MACOSX")) and part != ".." for part in path.parts):
            continue  # written by file managers
        if path.stem.endswith("_superpixels"):
            reason = reason or "a mask of part 2 of the challenge, not an image"
        elif path.suffix.lower() not in SUFFIXES:
            reason = reason or "not an image by its name"
        yield name, reason


def _shrink_one(job: tuple[Path, str, Path, int]) -> str | None:
    """Shrink one image in a worker process; returns the reason if it was refused."""
    originals, name, target, short_side = job
    source: Path | bytes = originals / name
    if not originals.is_dir():
        with zipfile.ZipFile(originals) as archive:
            try:
                source = archive.read(name)
            except Exception as error:  # each method of compression has its own errors
                return f"damaged in the zip ({error or type(error).__name__})"
    try:
        small = shrink(source, short_side)
    except Refused as refused:
        return str(refused)
    write_jpeg(small, target)
    return None


def shrink_all(
    originals: str | os.PathLike, out: str | os.PathLike, short_side: int = SHORT_SIDE, workers: int | None = None
) -> pd.DataFrame:
    """Shrink every image of a folder or zip, on all cores; continues where an earlier call stopped.

    Images go into ``out`` under the same names, in the same folders, with the ending ``.jpg``. Returns the table of
    refused files, ``file`` and ``reason``, which is in ``out/refused.csv`` too.

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
        raise ValueError(f"{out}: it and {originals} lie one inside the other; name a separate folder.")
    with writing_into(out):
        refused, jobs, taken = [], [], {}
        for name, reason in _find(originals):
            target = out / PurePosixPath(name).with_suffix(".jpg")
            if reason is None and target in taken:
                reason = f"would overwrite {taken[target]}, which has the same name"
            if reason is not None:
                refused.append((name, reason))
                continue
            taken[target] = name
            if not is_written(target):
                jobs.append((originals, name, target, short_side))
        # This process handles Ctrl-C; the workers end with it.
        with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
            results = progress(pool.map(_shrink_one, jobs, chunksize=4), total=len(jobs), unit="image")
            refused += [(job[1], reason) for job, reason in zip(jobs, results) if reason is not None]
        report = pd.DataFrame(sorted(refused), columns=["file", "reason"])
        write_text(report.to_csv(index=False), out / "refused.csv")
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.shrink``; returns the exit code, 2 if nothing could be shrunk."""
    parser = Parser(prog="python -m derma.shrink", description="Shrink originals to small JPEGs.")
    parser.add_argument("originals", type=Path, help="a folder or a zip of images")
    parser.add_argument("out", type=Path, help="where the small ones go; existing ones are kept")
    parser.add_argument(
        "--short-side", type=whole_number(16, 8192), default=SHORT_SIDE, metavar="PIXELS", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    originals, out, message = options.originals, options.out, ""
    try:
        report = shrink_all(originals, out, options.short_side)
        count = sum(1 for _ in out.rglob("*.jpg"))
        print(f"{out}: {count:,} images.")
        if len(report):
            print(f"Refused: {len(report):,}, listed in {out / 'refused.csv'}; the first of them:")
            print(report.head(10).to_string(index=False))
        if count == 0:
            message = f"{originals}: no image in there could be read; name a folder or zip of images."
    except (FileNotFoundError, ValueError, Busy) as error:
        message = str(error)
    except KeyboardInterrupt:
        message = "Interrupted; run the same command to continue."
    except OSError as error:
        message = f"{error.filename or out}: {error.strerror}; name another place."
    except zipfile.BadZipFile as error:
        message = f"{originals}: neither a folder nor a zip ({error}); name the originals."
    if message:
        print(message, file=sys.stderr)
    return 2 if message else 0


if __name__ == "__main__":
    sys.exit(main())
