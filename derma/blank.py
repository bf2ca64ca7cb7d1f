"""Prepare a control experiment: a copy of a data folder with the middle of every image blanked.

    python -m derma.blank data/isic2017 data/blanked --share 0.6

What a network still recognises there it owes to skin, light and instrument, as far as the square covers the lesion
(Bissoto et al., 2019, https://arxiv.org/abs/1904.08818).
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageStat

from derma.commands import Parser, progress, run_main
from derma.dataset import DatasetError, LesionData, load_image


def blank_middle(image: Image.Image, share: float) -> Image.Image:
    """Return an RGB image whose middle, ``share`` of each side in (0, 1), has the mean colour of its surroundings."""
    size = [int(share * side) for side in image.size]  # rounded down: something always remains
    corner = [(side - part) // 2 for side, part in zip(image.size, size)]
    middle = (*corner, *(start + part for start, part in zip(corner, size)))
    surroundings = Image.new("L", image.size, 255)
    surroundings.paste(0, middle)
    blanked = image.copy()
    blanked.paste(tuple(round(value) for value in ImageStat.Stat(image, surroundings).mean), middle)
    return blanked


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.blank``; returns the exit code, 2 if the folder cannot be opened or written."""
    parser = Parser(prog="python -m derma.blank", description="Copy a data folder with blanked middles.")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--share", type=float, default=0.6, help="of each side that is blanked (default: 0.6)")
    options = parser.parse_args(arguments)
    if not 0 < options.share < 1 or options.out.exists():
        parser.error("--share should lie between 0 and 1, and the output folder should not exist yet")
    try:
        for path in progress(LesionData(options.data).images["path"]):
            file = options.out / Path(path).relative_to(options.data).with_suffix(".png")
            file.parent.mkdir(parents=True, exist_ok=True)
            blank_middle(load_image(path), options.share).save(file)
        print(f"{options.out}: blanked images, as PNG.")
    except (DatasetError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_main(main)
