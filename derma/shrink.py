"""Shrink originals to what a network sees: from a folder or a zip of large images to small JPEGs.

    python -m derma.shrink ORIGINALS OUT    # a folder or a zip; keeps the folders inside it

A 12-megapixel JPEG takes a quarter of a second to decode, and a network sees 224 pixels of it. So each image is decoded
once, at 1/2, 1/4 or 1/8 of its size where that is enough (Pillow's ``draft`` mode: the JPEG's own downscaling). It is
resized to a short side of 256 pixels and written as a JPEG of quality 95 without chroma subsampling. Images that exist
in OUT are not shrunk again; unreadable ones are listed in ``OUT/refused.csv``.
"""

import errno
import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import pandas as pd
from filelock import FileLock
from filelock import Timeout as LockTimeout
from PIL import Image, ImageCms, ImageOps

from derma.commands import CommandError, Parser, progress, run_main, whole_number
from derma.files import write_bytes, write_text
from derma.inputs import is_passed_over, walk, why_misread, why_no_lesion
from derma.tables import ENDINGS
from derma.web import Refused, Web, Zip

MOST_BYTES = 2**29  # of one member of a zip, unpacked
SHORT_SIDE = 256
# What a file system answers where one name does not fit: too long, in the place of a folder, not its encoding.
NAME_ERRORS = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL}
Reasons = list[tuple[str, str]]  # names of images that could not be had, each with the reason


class Original(NamedTuple):
    """A file: its name in messages, its size in bytes, how to read it, and why it is refused unread."""

    name: str
    size: int
    read: Callable[[], bytes]
    reason: str | None = None


def _to_srgb(image: Image.Image) -> Image.Image:
    """Return an 8-bit sRGB image: colour profile applied, CMYK and palettes converted, transparency put on white."""
    if image.mode[0] == "I":  # 16-bit greys; a plain conversion would clip them to white
        return image.convert("F").point(lambda value: value * (1 / 257) + 0).convert("L").convert("RGB")
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


def shrink(content: bytes, short_side: int = SHORT_SIDE) -> Image.Image:
    """Decode the bytes of an image's file, and make it small.

    Returns an upright 8-bit RGB image in sRGB with the original's aspect ratio and a shorter side of ``short_side``
    pixels; a smaller image keeps its size. Refused: truncated, no image, more than 179 million pixels, or more than 8
    bits for each value that cannot be scaled.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if reason := why_misread(image):
                raise Refused(reason)
            image.draft(None, (short_side, short_side))
            image.load()
            small = _to_srgb(ImageOps.exif_transpose(image))
        scale = short_side / min(small.size)
        if scale >= 1:
            return small
        return small.resize([max(1, round(side * scale)) for side in small.size], Image.Resampling.LANCZOS)
    except Image.UnidentifiedImageError:
        raise Refused("not an image that can be read") from None
    except Exception as error:  # a damaged file can raise nearly anything in a decoder
        raise Refused(str(error) or type(error).__name__) from None


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Lock a folder for this process (else CommandError), and delete what a killed one left unfinished.

    The folder is made if missing. The lock is ``.<name>.lock`` in its parent folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.absolute().parent / f".{folder.absolute().name}.lock", timeout=0):
            for unfinished in folder.rglob("*.jpg.part"):
                if unfinished.is_file():
                    unfinished.unlink()
            yield
    except LockTimeout:
        raise CommandError(f"{folder}: another process is writing into it; wait, or name another folder.") from None


def _why_unread(member: zipfile.ZipInfo) -> str | None:
    """Return why a zip's member must not be unpacked, or None."""
    if member.flag_bits & 1:
        return "encrypted"
    return f"{member.file_size:,} bytes unpacked: a zip bomb?" if member.file_size > MOST_BYTES else None


def _why_unwanted(path: PurePosixPath) -> str | None:
    """Return why a file is refused by its name alone, or None."""
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(path).drive:
        return "points outside the folder"
    return why_no_lesion(path) or (None if path.suffix.lower() in ENDINGS else "not an image by its name")


def find_originals(location: str | Path, web: Web | None = None) -> list[Original]:
    """Return the files of a folder, or of a zip at a path or URL, ordered by name; those of file managers are skipped.

    Names have slashes, also those that a zip made on Windows has with backslashes.

    Raises:
        CommandError, Refused, OSError: there is no such folder or zip.
    """
    root = Path(location)
    if root.is_dir():
        found = [
            Original(path.relative_to(root).as_posix(), 0 if reason else path.stat().st_size, path.read_bytes, reason)
            for path, reason in walk(root)
        ]
    else:
        archive = Zip(location, web)
        found = [
            Original(each.filename, each.compress_size, partial(archive.read, each), _why_unread(each))
            for each in archive.members
        ]
    originals = []
    for original in found:
        name = original.name.replace("\\", "/")
        path = PurePosixPath(name)
        if not (name.endswith("/") or any(map(is_passed_over, path.parts))):  # a slash: a folder
            originals.append(original._replace(name=name, reason=original.reason or _why_unwanted(path)))
    return sorted(originals, key=lambda each: each.name)


def _shrink_one(original: Original, target: Path, short_side: int) -> str | None:
    """Read, shrink and write one image; returns the reason if it was refused."""
    try:
        small = shrink(original.read(), short_side)
    except (Refused, OSError) as error:
        return str(error)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=95, subsampling=0)
    try:
        write_bytes(buffer.getvalue(), target)
    except UnicodeError as error:
        return f"its name cannot be written here ({error.reason})"
    except OSError as error:
        if error.errno not in NAME_ERRORS:
            raise
        return f"its name cannot be written here ({error.strerror})"
    return None


def shrink_originals(
    jobs: Iterable[tuple[Original, Path]], short_side: int, threads: int | None, stop: Callable = lambda: None
) -> Reasons:
    """Read, shrink and write the images whose targets do not exist, with a progress bar; returns the refused ones.

    The threads decode at the same time, since Pillow releases Python's lock. If a server or the disk fails, the images
    that had arrived are kept, and ``stop`` is called so that nothing else is requested.
    """
    refused, todo, taken, folders = [], [], {}, {}
    for original, target in jobs:
        other = next((taken[each] for each in (target, *target.parents) if each in taken), folders.get(target))
        if reason := original.reason or (other and f"its file or folder needs the same name as {other}"):
            refused.append((original.name, reason))
            continue
        taken[target] = original.name
        folders |= dict.fromkeys(target.parents, original.name)
        if not os.path.exists(target):  # noqa: PTH110 - Path.exists raises for too long a name
            todo.append((original, target))
    bar = progress(total=sum(original.size for original, _ in todo), unit="B", unit_scale=True)
    with bar, ThreadPoolExecutor(threads) as pool:
        futures = {pool.submit(_shrink_one, *job, short_side): job[0] for job in todo}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                original = futures[future]
                if reason := future.result():
                    refused.append((original.name, reason))
                bar.set_postfix_str(f"{number:,} of {len(todo):,} images", refresh=False)
                bar.update(original.size)
        except BaseException:
            stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return refused


def write_report(refused: Reasons, out: Path) -> None:
    """Write ``out/refused.csv``, or remove it if nothing was refused."""
    (out / "refused.csv").unlink(missing_ok=True)
    if refused:
        write_text(pd.DataFrame(sorted(refused), columns=["file", "reason"]).to_csv(index=False), out / "refused.csv")


def shrink_all(originals: Path, out: Path, short_side: int) -> str:
    """Shrink every image of a folder or zip, on all cores, and report; continues where an earlier call stopped.

    Images go into ``out`` under the same names, in the same folders, with the ending ``.jpg``. Returns a message if
    there is none in the end.

    Raises:
        OSError, CommandError: there are no such originals, another process writes into ``out``, or one of the two
            folders lies in the other.
    """
    inner, outer = originals.resolve(), out.resolve()
    if originals.is_dir() and (inner.is_relative_to(outer) or outer.is_relative_to(inner)):
        raise CommandError(f"{out}: it and {originals} lie one inside the other; name a separate folder.")
    jobs = [(each, (out / each.name).with_suffix(".jpg")) for each in find_originals(originals)]
    with writing_into(out):
        refused = shrink_originals(jobs, short_side, os.cpu_count())
        write_report(refused, out)
    count = sum(path.is_file() for path in out.rglob("*.jpg"))
    print(f"{out}: {count:,} images; {len(refused):,} files refused.")
    if refused:
        print(f"The reasons are in {out / 'refused.csv'}, such as '{': '.join(refused[0])}'.")
    return "" if count else f"{originals}: no image in there could be read; name a folder or zip of images."


def run_command(action: Callable[[], str], out: Path, *problems: type[Exception]) -> int:
    """Run what a command does and print its message; returns the exit code, 2 if it failed or has a message."""
    kept = 0
    try:
        message = action()
    except (KeyboardInterrupt, OSError, CommandError, Refused, *problems) as error:
        message = str(error)
        if isinstance(error, KeyboardInterrupt):
            message = "Interrupted; run the same command to continue."
        elif isinstance(error, OSError):
            message = f"{error.filename or out}: {error.strerror or error}; name another place."
        kept = sum(1 for _ in out.rglob("*.jpg"))
    if message:
        print(message + (f" What has arrived is kept ({kept:,} images in {out})." if kept else ""), file=sys.stderr)
    return 2 if message else 0


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.shrink``; returns the exit code, 2 if nothing could be shrunk."""
    parser = Parser(prog="python -m derma.shrink", description="Shrink originals to small JPEGs.")
    parser.add_argument("originals", type=Path, help="a folder or a zip of images")
    parser.add_argument("out", type=Path, help="where the small ones go; existing ones are kept")
    text = "default: %(default)s"
    parser.add_argument("--short-side", type=whole_number(16, 8192), default=SHORT_SIDE, metavar="PIXELS", help=text)
    options = parser.parse_args(arguments)
    return run_command(partial(shrink_all, options.originals, options.out, options.short_side), options.out)


if __name__ == "__main__":
    run_main(main)
