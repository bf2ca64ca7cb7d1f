"""Open a folder of dermoscopic images: scanned and checked once, counted, and ready for a DataLoader.

The layout is ``<root>/{train,valid,test}/{melanoma,nevus,seborrheic_keratosis}/*.jpg``, or the class folders alone.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, Sampler

from derma.inputs import is_passed_over, why_misread, why_no_file, why_no_lesion
from derma.tables import CLASSES, ENDINGS, name_of, why_ambiguous

SPLITS = ("train", "valid", "test")
LABELS = [name.replace("_", " ") for name in CLASSES]
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # why_unreadable refuses these
CACHE_SHARE = 0.25  # of the free memory that the decoded images of one set may take


class DatasetError(ValueError):
    """The folder is not what this project can train on; the message is one sentence that says what to do."""


def load_image(path: str | os.PathLike, short_side: int) -> Image.Image:
    """Decode one image with Pillow, as RGB and turned upright by its EXIF orientation; nothing is repaired.

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (Pillow's ``draft`` mode), as long as no side falls below
    ``short_side`` pixels. OSError, SyntaxError, ValueError or Image.DecompressionBombError if it cannot be read.
    """
    with Image.open(path) as image:
        image.draft("RGB", (short_side, short_side))
        image.load()
        return ImageOps.exif_transpose(image).convert("RGB")


def load_square(path: str | os.PathLike, size: int) -> Image.Image:
    """Decode one image and squash all of it into a square of ``size`` pixels; errors as :func:`load_image`."""
    return load_image(path, size).resize((size, size), Image.Resampling.BILINEAR)


def why_unreadable(path: str | os.PathLike) -> str | None:
    """Return why a file cannot be used as an image of a lesion, in one phrase, or None if it can."""
    path = Path(path)
    if reason := why_no_lesion(path) or why_no_file(path):
        return reason
    try:
        with Image.open(path) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                return "more pixels than Pillow's limit for a safe image"
            if image.mode[0] in "IF":
                return f"more than 8 bits for each pixel (mode {image.mode}), which would be clipped"
            if reason := why_misread(image):
                return reason
        load_image(path, short_side=32)  # draft mode still reads the whole stream, so it notices a torn file
    except Image.UnidentifiedImageError:
        return "empty file" if path.stat().st_size == 0 else "not an image that can be read; save it as JPEG or PNG"
    # A damaged file can surface as nearly anything in a decoder; each of them means "remove it, and say so".
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not is_passed_over(entry.name))


def _scan(folder: Path, split: str, identifier: str) -> Iterator[tuple[str, str, str, int]]:
    """Yield ``(path, id, split, target)`` for the files of a folder of class folders, images by their ending or not."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: the split folder '{split}' is missing; make it, with a folder for each class.")
    names = {entry.name for entry in _visible(folder) if entry.is_dir()}
    for name in sorted(names.difference(CLASSES)):
        known = CLASSES if split else SPLITS + CLASSES
        raise DatasetError(f"{folder / name}: unknown class folder; there are {', '.join(known)} and no other.")
    for target, name in enumerate(CLASSES):
        for entry in _visible(folder / name) if name in names else ():
            if entry.is_dir():
                raise DatasetError(f"{entry}: a folder inside a class folder; put its images straight into {name}.")
            yield str(entry), f"data/{identifier}/{name}/{entry.name}", split, target


class LesionData:
    """A data folder with its three splits, opened and checked once.

    Every image is decoded once (at reduced scale) while opening. Masks and what cannot be decoded are ``unreadable``.
    Class folders without splits are cut into splits: three quarters train, an eighth each valid and test. If a
    ``metadata.csv`` with a column ``lesion_id`` lies there too, the images of a lesion stay together.

    Args:
        root: a folder that holds ``train``, ``valid`` and ``test``, or the class folders themselves.
        need_classes: False takes class folders without splits even if one of the three is missing.

    Attributes:
        root, name: the folder, and its own name.
        images: a row for each readable image: ``path``, ``id`` (``data/<name>/<split>/<class>/<file>``), ``split``
            (one of :data:`SPLITS`) and ``target`` (its place in :data:`CLASSES`).
        unreadable: a row for each removed image: ``file`` and ``reason``.

    Raises:
        DatasetError: the layout is wrong, a class is empty, or none of its images can be read.
    """

    def __init__(self, root: str | os.PathLike, need_classes: bool = True):
        self.root = Path(root)
        self.name = self.root.absolute().name
        if not self.root.is_dir():
            raise DatasetError(
                f"{self.root}: {'a file and no folder' if self.root.exists() else 'no such folder'}; name one that "
                f"holds {', '.join(SPLITS)}, or class folders. 'make data' fetches data/isic2017, "
                "'make data FETCH=--extra' data/extra, and 'python -m derma.sample' draws one."
            )
        cut = not any((self.root / split).is_dir() for split in SPLITS)
        if cut:
            rows = list(_scan(self.root, "", self.name))
        else:
            rows = [row for split in SPLITS for row in _scan(self.root / split, split, f"{self.name}/{split}")]
        rows = [row for row in rows if Path(row[0]).suffix.lower() in ENDINGS]
        images = pd.DataFrame(rows, columns=["path", "id", "split", "target"])
        with ThreadPoolExecutor() as pool:  # Pillow's decoders release the GIL
            reasons = dict(zip(images["path"], pool.map(why_unreadable, images["path"])))
        reasons = {path: why for path, why in reasons.items() if why}
        self.unreadable = pd.DataFrame(list(reasons.items()), columns=["file", "reason"])
        self.images = images[~images["path"].isin(reasons)].reset_index(drop=True)
        if cut:
            self._cut(3 if need_classes else 2)
        else:
            self._check_classes(reasons)
        if (not cut or need_classes) and (what := why_ambiguous(self.images["path"].tolist())):
            raise DatasetError(what)  # predictions and truth are joined by name

    def _lesions(self) -> pd.Series:
        """Return the lesion of each image, from metadata.csv (whose first column names the images), or its own path."""
        names = self.images["path"].map(name_of)
        file = self.root / "metadata.csv"
        try:
            with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):  # rows with too many fields
                table = pd.read_csv(file, dtype=str, keep_default_na=False, index_col=False)
        except FileNotFoundError:
            return self.images["path"]
        except (OSError, ValueError, pd.errors.ParserWarning) as error:
            raise DatasetError(f"{file}: not a CSV file ({str(error).strip()}); correct it, or rename it.") from None
        if "lesion_id" not in table:
            if "lesion_id" in ",".join(table).lower():
                raise DatasetError(
                    f"{file}: name one column 'lesion_id', and separate columns by commas without spaces."
                )
            return self.images["path"]
        known = {name_of(image): lesion for image, lesion in zip(table.iloc[:, 0], table["lesion_id"]) if lesion}
        if known and not names.isin(known).any():
            raise DatasetError(f"{file}: its first column names none of the images; put their names there.")
        twice = names[names.isin(known) & names.duplicated()]
        if len(twice):
            raise DatasetError(
                f"{file}: two images have the name {twice.iloc[0]}, so its lesion is unknown; rename one."
            )
        return names.map(known).fillna(self.images["path"])

    def _cut(self, classes: int) -> None:
        """Give the lesions of each class splits in turn; a DatasetError if there are fewer classes or lesions."""
        turns = np.array(["train", "test", "train", "train", "train", "valid", "train", "train"])
        lesions = self._lesions()
        first = self.images.assign(lesion=lesions).drop_duplicates("lesion")
        counts = first["target"].value_counts()
        if len(counts) < classes or counts.min() < 8:
            raise DatasetError(
                f"{self.root}: neither splits ({', '.join(SPLITS)}) nor at least {classes} of the class folders "
                f"({', '.join(CLASSES)}), each with eight readable images of different lesions; make such folders."
            )
        split = dict(zip(first["lesion"], turns[first.groupby("target").cumcount() % len(turns)]))
        self.images["split"] = lesions.map(split)

    def _check_classes(self, reasons: dict[str, str]) -> None:
        """Refuse a split without readable images of a class."""
        present = set(zip(self.images["split"], self.images["target"]))
        for split, (target, name) in product(SPLITS, enumerate(CLASSES)):
            if (split, target) not in present:
                folder = self.root / split / name
                bad = [f" ({Path(path).name}: {why})" for path, why in reasons.items() if Path(path).parent == folder]
                raise DatasetError(f"{folder}: no image of this class can be read{''.join(bad[:1])}; put one there.")

    @property
    def counts(self) -> pd.DataFrame:
        """Images for each split (row) and class (column), with totals."""
        table = pd.crosstab(self.images["split"], self.images["target"], margins=True, margins_name="all")
        table = table.reindex(index=[*SPLITS, "all"], columns=[*range(len(CLASSES)), "all"], fill_value=0)
        return table.set_axis([*CLASSES, "all"], axis=1).rename_axis(None)

    def split(self, *names: str) -> pd.DataFrame:
        """Return the rows of :attr:`images` of these splits, in that order."""
        return pd.concat([self.images[self.images["split"] == name] for name in names], ignore_index=True)

    def remove(self, paths: set[str]) -> None:
        """Drop images by path; a DatasetError, with nothing dropped, if a class of a split would be left empty."""
        kept = self.images[~self.images["path"].isin(paths)].reset_index(drop=True)
        before, after = (set(zip(table["split"], table["target"])) for table in (self.images, kept))
        for split, target in sorted(before - after):
            raise DatasetError(f"{self.root / split / CLASSES[target]}: no image would be left in this class.")
        self.images = kept


def seed_from(*numbers: int) -> int:
    """Return one seed for several numbers, such that neighbours have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _fits_in_memory(size: int) -> bool:
    """Return whether a cache of ``size`` bytes is a fair share of the free memory, for each process of this machine."""
    room = psutil.virtual_memory().available
    if Path("/dev/shm").is_dir():  # where Linux keeps shared memory; a container may have little of it
        room = min(room, shutil.disk_usage("/dev/shm").free)
    return size <= CACHE_SHARE * room / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


class LesionImages(Dataset):
    """Images, squashed into squares of one size, with their classes.

    Each file is decoded once: the squares stay in memory that worker processes share, if it is large enough. Sets made
    by :meth:`subset` and :meth:`augmented` share that cache.

    Args:
        images: rows of :attr:`LesionData.images`.
        size: side of the squares in pixels.
        transform: applied to the PIL image.

    Attributes:
        paths: (N,) files. ids: (N,) text. targets: (N,) class numbers.
    """

    def __init__(self, images: pd.DataFrame, size: int, transform: Callable):
        self.size, self.transform, self.seed = size, transform, None
        self.paths, self.ids = images["path"].tolist(), images["id"].tolist()
        self.targets = images["target"].to_numpy()
        self._rows = np.arange(len(images))
        self._cache = self._cached = None
        if _fits_in_memory(len(images) * size * size * 3):
            self._cache = torch.empty((len(images), size, size, 3), dtype=torch.uint8).share_memory_()
            self._cached = torch.zeros(len(images), dtype=torch.bool).share_memory_()

    def _copy(self, **changes: object) -> LesionImages:
        copy = object.__new__(LesionImages)
        vars(copy).update(vars(self) | changes)
        return copy

    def subset(self, rows: np.ndarray) -> LesionImages:
        """Return the images at these places."""
        paths, ids = ([values[row] for row in rows] for values in (self.paths, self.ids))
        return self._copy(paths=paths, ids=ids, targets=self.targets[rows], _rows=self._rows[rows])

    def augmented(self, transform: Callable, seed: int) -> LesionImages:
        """Return the same images with a random transform, which the seed, the epoch and the image decide alone."""
        return self._copy(transform=transform, seed=seed)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple]:
        return (self[index] for index in range(len(self)))

    def _square(self, index: int) -> Image.Image:
        row = self._rows[index]
        if self._cache is None:
            return load_square(self.paths[index], self.size)
        if not self._cached[row]:
            self._cache[row] = torch.from_numpy(np.array(load_square(self.paths[index], self.size)))
            self._cached[row] = True
        return Image.fromarray(self._cache[row].numpy())

    def __getitem__(self, number: int) -> tuple:
        """Return ``(image, target)``; ``number`` is ``epoch * len(self) + index``, see :class:`EpochOrder`."""
        epoch, index = divmod(int(number), len(self))
        image, target = self._square(index), int(self.targets[index])
        if self.seed is None:
            return self.transform(image), target
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the accelerators too.
            torch.default_generator.manual_seed(seed_from(self.seed, epoch, int(self._rows[index])))
            return self.transform(image), target


class EpochOrder(Sampler):
    """The order of a training epoch, by seed and epoch alone: a resumed run needs no more than the epoch's number.

    It yields ``epoch * length + index``. Accelerate's loader calls ``set_epoch``.
    """

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_from(self.seed, self.epoch))
        yield from (self.epoch * self.length + torch.randperm(self.length, generator=generator)).tolist()


def _lower_priority(worker: int) -> None:
    """Give a worker less priority than the network's threads, which all wait for the slowest one at every layer.

    It is not the least: the worker would starve next to other work.
    """
    if hasattr(os, "nice"):
        os.nice(5)


def make_loader(
    dataset: Dataset, batch_size: int, *, shuffle: bool = False, seed: int = 0, workers: int | None = None
) -> DataLoader:
    """Return a DataLoader over ``dataset`` whose order depends on ``seed`` and the epoch alone.

    Args:
        dataset: a :class:`LesionImages`, or :class:`derma.features.Features`, which needs no workers.
        batch_size: items for each batch; the last batch may be smaller, unless ``shuffle``.
        shuffle: a new seeded order for every epoch; for training only. Items that do not fill a batch are left to
            another epoch's order: batch normalisation fails on a batch of one.
        workers: processes that prepare batches; 0 does it in this process, None takes a core each, from 2 to 8.
    """
    if not isinstance(dataset, LesionImages):
        workers = 0  # features lie in memory; sending them between processes would take longer
    elif workers is None:
        workers = max(2, min(8, (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochOrder(len(dataset), seed) if shuffle else None,
        drop_last=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=None if torch.cuda.is_available() else _lower_priority,
        # DataLoader draws its workers' seeds from it: the global generator is left to the network.
        generator=torch.Generator().manual_seed(seed),
    )


def open_data(root: Path, *, drop_leaks: bool, trained: tuple[str, ...], need_classes: bool = True) -> LesionData:
    """Open a data folder for a notebook: draw ``data/sample`` if it is missing, and say which images are removed.

    Args:
        root, need_classes: see :class:`LesionData`.
        drop_leaks: remove the images of ``trained`` splits that show a photograph of another split.
    """
    from derma.leaks import training_leaks
    from derma.sample import draw_sample  # which needs what is above

    if root == Path("data/sample") and not root.exists():
        draw_sample(root)
    data = LesionData(root, need_classes)
    if len(data.unreadable):
        print(f"Removed files that cannot be used: {len(data.unreadable)}, such as")
        print(data.unreadable.head(5).to_string(index=False))
    if drop_leaks:
        leaks = training_leaks(data.images, trained)
        data.remove(set(leaks["train"]))
        print(f"Removed images that show a photograph of another split: {leaks['train'].nunique()}")
    return data
