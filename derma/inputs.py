"""Which files are images of lesions: one set of rules for derma.shrink, derma.fetch, derma.check and data folders.

File managers and systems leave files among images: those are passed over without a word. Masks, links to nothing and
images whose values nobody can interpret are refused, each with a reason for the report.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath

from PIL import Image

SYSTEM_NAMES = {
    *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "lost+found"),
    *("$recycle.bin", "recycler", "system volume information", "__pycache__"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # network storage
}
_MASKS = r"superpixels?|segmentations?|seg|masks?|contours?|ground_?truth"
# Masks as the ISIC challenges (parts 1 and 2), HAM10000, PH2 and most others name them, with or without a number.
_MASK_NAME = re.compile(
    rf"(.*[\W_])?({_MASKS})[\W_]?\d*|ISIC_\d+_attribute_.*|IMD\d+_(lesion|R\d+_Label\d+)", re.IGNORECASE
)
SAVE_AS_8_BITS = "save it with 8 bits for each value"


def is_passed_over(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or one of a file manager or system."""
    return name.lower() in SYSTEM_NAMES or (name.startswith(".") and name != "..")


def why_no_lesion(path: PurePath) -> str | None:
    """Return why a file shows no lesion, by its name and that of its folder, or None."""
    masked = _MASK_NAME.fullmatch(path.stem) or re.fullmatch(_MASKS, path.parent.name, re.IGNORECASE)
    return "a mask by its name, not an image of a lesion" if masked else None


def why_no_file(path: Path) -> str | None:
    """Return why a path must not be opened (to read from a pipe may take forever), or None."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"a link to {path.readlink()}, which is missing" if path.is_symlink() else error.strerror
    return None if stat.S_ISREG(mode) else "a pipe, socket or device, not a file"


def walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, str | None]]:
    """Yield each file below a folder and why it cannot be read, or None; links to folders are followed."""
    real = folder.resolve()
    if real in above:
        yield folder, "a link to a folder that it lies in"
        return
    try:
        entries = [entry for entry in folder.iterdir() if not is_passed_over(entry.name)]
    except OSError as error:
        yield folder, error.strerror
        return
    for entry in entries:
        if os.path.isdir(entry):  # noqa: PTH112 - Path.is_dir raises where it may not look
            yield from walk(entry, (*above, real))
        else:
            yield entry, why_no_file(entry)


def why_misread(image: Image.Image) -> str | None:
    """Return why the values of an opened image cannot be brought to 8 bits, or None.

    A file of 16 bits says that its values go up to 65,535. Some programs leave the upper bits of a camera's 10 to 14
    empty all the same: the image would be almost black. Images of more than 8 bits for each value are decoded by this.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if image.mode == "F" or (image.mode == "I" and tags):
        return f"floating-point, signed or 32-bit values, whose range the file does not say; {SAVE_AS_8_BITS}"
    coding = str(image.tile[0].args) if image.tile else ""  # such as RGB;16B of a PNG, ('RGB', 65535) of a PPM
    if not (image.mode[0] == "I" or max(tags.get(258, (8,))) > 8 or re.search(r";16B$|'RGB', \d{4,}\)$", coding)):
        return None
    if tags.get(284) == 2 or tags.get(262) == 0:
        return f"a TIFF of more than 8 bits in planes, or with white as zero, which Pillow misreads; {SAVE_AS_8_BITS}"
    image.load()
    colours = [band for name, band in zip(image.getbands(), image.split(), strict=True) if name != "A"]
    filled = max(band.getextrema()[1] for band in colours) / (65535 if image.mode[0] == "I" else 255)
    if filled < 0.25:
        return f"almost black: its greatest value is {filled:.1%} of what the file allows; {SAVE_AS_8_BITS}"
    return None
