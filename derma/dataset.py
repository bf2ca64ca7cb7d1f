"""Open a folder of dermoscopic pictures: checked, counted, and ready for a DataLoader.

The layout is ``<root>/{train,valid,test}/{melanoma,nevus,seborrheic_keratosis}/*.jpg``. Everything here can be
imported by a DataLoader's worker process, whatever the start method.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

SPLITS = ("train", "valid", "test")
CLASSES = ("melanoma", "nevus", "seborrheic_keratosis")
OTHER_ENDING = f"an ending that is not read (those are {' '.join(IMG_EXTENSIONS)}); save it as JPEG or PNG"
TOO_LARGE = "more pixels than Pillow's limit for a safe picture"


class DatasetError(ValueError):
    """The folder is not what this project can train on; the message is one sentence that says what to do."""


def load_image(path: str | os.PathLike, short_side: int | None = None) -> Image.Image:
    """Decode one picture with Pillow.

    Args:
        path: a picture file.
        short_side: if given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (Pillow's ``draft`` mode: the
            JPEG's own downscaling), as long as no side falls below this many pixels.

    Returns:
        An RGB picture, turned upright by its EXIF orientation.

    Raises:
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: the file cannot be read as a picture. Nothing
            is repaired: a truncated file is an error, not a half-grey picture.
    """
    with Image.open(path) as picture:
        if short_side is not None:
            picture.draft("RGB", (short_side, short_side))
        picture.load()
        return ImageOps.exif_transpose(picture).convert("RGB")


def load_square(path: str | os.PathLike, side: int) -> Image.Image:
    """Decode one picture and squeeze it whole into a square of ``side`` pixels; errors as :func:`load_image`."""
    return load_image(path, side).resize((side, side), Image.Resampling.BILINEAR)


def why_unreadable(path: str | os.PathLike) -> str | None:
    """Return the reason why a picture cannot be decoded in one phrase, or None if it can."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
                return TOO_LARGE
            if picture.mode[0] in "IF":
                return f"more than 8 bits for each pixel (mode {picture.mode}), which would be clipped"
        load_image(path, short_side=32)  # draft mode still reads the whole stream, so it notices a torn file
    except Image.UnidentifiedImageError:
        return "empty file" if Path(path).stat().st_size == 0 else "not a picture"
    except Image.DecompressionBombError:
        return TOO_LARGE
    # A damaged file can surface as nearly anything in a decoder; each of them means "leave it out, and say so".
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def _pictures_by_another_name(folder: Path) -> list[Path]:
    """Files that Pillow would take for pictures by their ending, and ImageFolder would pass over in silence."""
    known = set(Image.registered_extensions()) - set(IMG_EXTENSIONS) - {".pdf", ".eps", ".ps", ".mpg", ".mpeg"}
    files = (path for name in CLASSES if (folder / name).is_dir() for path in (folder / name).iterdir())
    return sorted(path for path in files if path.suffix.lower() in known and path.name[0] not in "._")


class LesionFolder(ImageFolder):
    """One split as a torchvision ``ImageFolder``, with the classes in the project's fixed order.

    Items are ``(picture, target)``; target is 0 (melanoma), 1 (nevus) or 2 (seborrheic keratosis).

    Args:
        root: the split's folder.
        transform: applied to the PIL picture.
        loader: reads one picture; see :func:`load_image`.
        extra: a folder of further pictures in class folders, not all of which need be there.

    Attributes:
        ids: each item's path below the repository's root, ``data/<name>/<split>/<class>/<file>``.

    Raises:
        DatasetError: a class folder is missing, unknown or empty.
    """

    def __init__(
        self,
        root: Path,
        transform: Callable | None = None,
        loader: Callable = load_image,
        extra: Path | None = None,
    ):
        super().__init__(root, transform=transform, loader=loader, allow_empty=True)
        # Built from names, not by relative_to: the folder may lie outside the repository, or be a link into it.
        split = Path(root).absolute()
        self._names = {str(Path(root)): f"{split.parent.name}/{split.name}"}
        # ImageFolder goes down into folders within: hidden ones hold thumbnails and the like, others are refused below.
        self.leave_out({path for path, target in self.samples if Path(path).parent != Path(root) / CLASSES[target]})
        for name, target in self.class_to_idx.items():
            for entry in sorted((Path(root) / name).iterdir()):
                if entry.is_dir() and entry.name[0] not in "._":
                    raise DatasetError(
                        f"{entry}: a folder inside a class folder; put its pictures straight into {name}."
                    )
            if target not in self.targets:
                raise DatasetError(
                    f"{Path(root) / name}: no pictures in this class folder; put at least one JPEG there."
                )
        if extra is not None:
            self._names[str(extra)] = extra.absolute().name
            self._take_in(_extra_samples(extra))

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Return the project's classes in their fixed order; any other set of folders is an error."""
        folders = {entry.name for entry in Path(directory).iterdir() if entry.is_dir() and entry.name[0] not in "._"}
        for name in sorted(folders - set(CLASSES)):
            raise DatasetError(
                f"{Path(directory) / name}: unknown class folder; a split holds {', '.join(CLASSES)} and no other."
            )
        for name in CLASSES:
            if name not in folders:
                raise DatasetError(f"{Path(directory) / name}: this class folder is missing; a split holds all three.")
        return list(CLASSES), {name: target for target, name in enumerate(CLASSES)}

    def leave_out(self, paths: set[str]) -> None:
        """Drop the items whose files are in ``paths``."""
        self.samples = self.imgs = [item for item in self.samples if item[0] not in paths]
        self.targets = [target for _, target in self.samples]

    def append(self, other: LesionFolder) -> None:
        """Let another split's items follow this one's, to be read and transformed as these are."""
        self._names |= other._names
        self._take_in(other.samples)

    def _take_in(self, samples: list[tuple[str, int]]) -> None:
        self.samples = self.samples + samples
        self.leave_out(set())

    @property
    def ids(self) -> list[str]:
        return [
            f"data/{self._names[str(Path(path).parent.parent)]}/{CLASSES[target]}/{Path(path).name}"
            for path, target in self.samples
        ]


def _extra_samples(extra: Path) -> list[tuple[str, int]]:
    """Return the pictures of a folder of class folders as ``(path, target)``."""
    if not extra.is_dir():
        raise DatasetError(
            f"{extra}: no such folder; set DERMA_EXTRA to a folder that holds {', '.join(CLASSES)}, or leave it out."
        )
    folders = sorted(entry.name for entry in extra.iterdir() if entry.is_dir() and entry.name[0] not in "._")
    for name in folders:
        if name not in CLASSES:
            raise DatasetError(
                f"{extra / name}: unknown class folder; extra pictures lie in {', '.join(CLASSES)} and no other."
            )
    samples = [
        (str(path), CLASSES.index(name))
        for name in folders
        for path in sorted((extra / name).iterdir())
        if path.suffix.lower() in IMG_EXTENSIONS and path.name[0] not in "._"
    ]
    if not samples:
        raise DatasetError(f"{extra}: no pictures in its class folders; put some there, or leave DERMA_EXTRA out.")
    return samples


class LesionData:
    """A data folder with its three splits, opened and checked once.

    Every picture is decoded once (at reduced scale) while opening; those that cannot be are left out of every split and
    listed in :attr:`unreadable`, so that nothing disappears in silence.

    Args:
        root: a folder that holds ``train``, ``valid`` and ``test``.
        extra: a folder of class folders whose pictures join the training split; see ``derma.fetch --extra``.

    Attributes:
        name: the folder's own name; outputs go to ``models/<name>`` and ``images/<name>``.
        unreadable: one row for each picture left out: its path and the reason.

    Raises:
        DatasetError: the layout is wrong, a class is empty, or none of its pictures can be read.
    """

    def __init__(self, root: str | os.PathLike, extra: str | os.PathLike | None = None):
        self.root = Path(root)
        self.extra = None if extra is None else Path(extra)
        self.name = self.root.absolute().name
        if not self.root.is_dir():
            raise DatasetError(
                f"{self.root}: {'a file and no folder' if self.root.exists() else 'no such folder'}; name one that "
                f"holds {', '.join(SPLITS)}: 'make data' brings ISIC 2017 into data/isic2017, 'python -m derma.sample' "
                "draws data/sample, and DERMA_DATA names the notebook's."
            )
        for split in SPLITS:
            if not (self.root / split).is_dir():
                raise DatasetError(
                    f"{self.root}: the split folder '{split}' is missing; a data folder holds {', '.join(SPLITS)}."
                )
        self._left_out = set()
        folders = {split: self.split(split) for split in SPLITS}
        paths = [path for folder in folders.values() for path, _ in folder.samples]
        with warnings.catch_warnings(), ThreadPoolExecutor() as pool:  # Pillow's decoders release the GIL
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # TOO_LARGE says it
            reasons = dict(zip(paths, pool.map(why_unreadable, paths), strict=True))
        reasons = {path: reason for path, reason in reasons.items() if reason}
        roots = [self.root / split for split in SPLITS] + ([self.extra] if self.extra is not None else [])
        reasons |= {str(path): OTHER_ENDING for root in roots for path in _pictures_by_another_name(root)}
        self.unreadable = pd.DataFrame(list(reasons.items()), columns=["file", "reason"])
        self._left_out = set(reasons)

        for split, folder in folders.items():
            folder.leave_out(self._left_out)
            stems = pd.Series([Path(path).stem for path, _ in folder.samples])
            if stems.duplicated().any():
                # Predictions and truth are joined on this name.
                name = stems[stems.duplicated()].iloc[0]
                raise DatasetError(
                    f"{self.root / split}: two pictures are named '{name}'; give each a name of its own."
                )
            for target, name in enumerate(CLASSES):
                if target not in folder.targets:
                    first, reason = next(
                        (p, r) for p, r in reasons.items() if Path(p).parent == self.root / split / name
                    )
                    raise DatasetError(
                        f"{self.root / split / name}: none of this class's pictures can be read "
                        f"({Path(first).name}: {reason}); replace them."
                    )

        self._check_extra_names()

    def _check_extra_names(self) -> None:
        """Refuse extra pictures with the name of one in validation or test: they would be the same picture."""
        if self.extra is None:
            return
        owner = {Path(path).stem: path for split in SPLITS[1:] for path, _ in self.split(split).samples}
        for path, _ in _extra_samples(self.extra):
            if Path(path).stem in owner:
                raise DatasetError(
                    f"{path}: has the name of {owner[Path(path).stem]}, which must not be trained on; remove it."
                )

    @property
    def counts(self) -> pd.DataFrame:
        """Pictures for each split (row) and class (column), with totals."""
        counts = {split: self.split(split).targets for split in SPLITS}
        table = pd.DataFrame(
            [[targets.count(target) for target in range(len(CLASSES))] for targets in counts.values()],
            index=list(SPLITS),
            columns=list(CLASSES),
        )
        table["all"] = table.sum(axis=1)
        table.loc["all"] = table.sum()
        return table

    def leave_out(self, paths: set[str]) -> None:
        """Drop pictures from every split, such as those that :func:`derma.check.training_leaks` finds.

        Args:
            paths: files, as in the ``samples`` of :meth:`split`.

        Raises:
            DatasetError: a class of a split would be left without pictures; nothing is dropped then.
        """
        for split in SPLITS:
            left = {target for path, target in self.split(split).samples if path not in paths}
            for target in sorted(set(range(len(CLASSES))) - left):
                raise DatasetError(f"{self.root / split / CLASSES[target]}: no picture would be left in this class.")
        self._left_out |= paths

    def split(self, split: str, transform: Callable | None = None, side: int | None = None) -> LesionFolder:
        """Return one split (``"train"``, ``"valid"`` or ``"test"``) without its unreadable pictures.

        Args:
            split: its name.
            transform: applied to the PIL picture.
            side: pictures are squeezed into squares of so many pixels; by default they stay as they are.
        """
        loader = load_image if side is None else partial(load_square, side=side)
        folder = LesionFolder(self.root / split, transform, loader, self.extra if split == "train" else None)
        folder.leave_out(self._left_out)
        return folder

    def pool(self, transform: Callable | None = None, side: int | None = None) -> LesionFolder:
        """Return the pictures of the training split, then those of the validation split, as one; see :meth:`split`."""
        folder = self.split("train", transform, side)
        folder.append(self.split("valid"))
        return folder


class KeptPictures(torch.utils.data.Dataset):
    """The squares of a split, each decoded once, then kept for every epoch and every worker process.

    They lie in memory that torch shares among processes, however those were started, and that goes with the last of
    them, even if it is killed.

    Args:
        folder: a split of :class:`LesionData`, with a ``side``.
        side: of its squares, in pixels.
    """

    def __init__(self, folder: LesionFolder, side: int):
        self.folder = folder
        self._pictures = torch.empty((len(folder), side, side, 3), dtype=torch.uint8).share_memory_()
        self._there = torch.zeros(len(folder), dtype=torch.bool).share_memory_()

    @staticmethod
    def size_of(folder: LesionFolder, side: int) -> int:
        """Return how many bytes the pictures of a split would take."""
        return len(folder) * side * side * 3

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple:
        path, target = self.folder.samples[index]
        if not self._there[index]:
            self._pictures[index] = torch.from_numpy(np.array(self.folder.loader(path)))
            self._there[index] = True
        picture = Image.fromarray(self._pictures[index].numpy())
        return picture if self.folder.transform is None else self.folder.transform(picture), target


def keep_if_small(folder: LesionFolder, side: int, share: float = 0.25) -> torch.utils.data.Dataset:
    """Return a split whose pictures are decoded once and kept, if the memory allows it; else the split as it is.

    Args:
        folder: a split of :class:`LesionData`, with a ``side``.
        side: of its squares, in pixels.
        share: of the memory that is free now, how much they may take, from 0 to 1. Of several processes that torchrun
            started on one machine, each has its part of it.
    """
    room = psutil.virtual_memory().available
    if Path("/dev/shm").is_dir():  # where Linux keeps shared memory; a container may have little of it
        room = min(room, shutil.disk_usage("/dev/shm").free)
    share /= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return KeptPictures(folder, side) if KeptPictures.size_of(folder, side) <= share * room else folder


class EpochOrder(torch.utils.data.Sampler):
    """The order of a training epoch, by seed and epoch alone, so that a resumed run needs no more than its number.

    It yields ``epoch * length + index`` for :class:`SeededItems` to take apart.

    Args:
        length: how many items there are, and how many are drawn.
        seed: see above.
        odds: (length,) above 0: items are drawn with replacement, each so many times as often; by default each once.

    Attributes:
        epoch: from 0; goes up by itself, or by ``set_epoch``, as Accelerate and DistributedSampler do it.
    """

    def __init__(self, length: int, seed: int, odds: torch.Tensor | None = None):
        self.length, self.seed, self.odds, self.epoch = length, seed, odds, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        if self.odds is None:
            order = torch.randperm(self.length, generator=generator)
        else:
            order = torch.multinomial(self.odds.double(), self.length, replacement=True, generator=generator)
        yield from (epoch * self.length + order).tolist()


class SeededItems(torch.utils.data.Dataset):
    """A data set whose random augmentation depends on seed, epoch and item: on no worker, and on nothing before it."""

    def __init__(self, dataset: torch.utils.data.Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int):
        epoch, index = divmod(number, len(self.dataset))
        before = torch.get_rng_state()
        # Not torch.manual_seed, which would seed the accelerators too.
        torch.default_generator.manual_seed(_mix(self.seed, epoch, index))
        try:
            return self.dataset[index]
        finally:
            torch.set_rng_state(before)


class _Rows(torch.utils.data.Dataset):
    """A TensorDataset that gives a whole batch at once: row by row would take longer than training a head on them.

    Nothing is random in it, so that of the numbers of :class:`EpochOrder` the index alone counts.
    """

    def __init__(self, dataset: torch.utils.data.TensorDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, numbers: list[int]) -> tuple[torch.Tensor, ...]:  # DataLoader asks for batches by it
        return self.dataset[torch.tensor(numbers) % len(self.dataset)]


def _keep_batch(batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Collate what is a batch already."""
    return batch


def _mix(*numbers: int) -> int:
    """Return one seed of several, such that neighbours have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _step_back(worker: int) -> None:
    """Give a worker process less priority: on a CPU it would else take its turns from the network's threads, which wait
    for each other at every layer, so that each turn counts twice. Not the least: beside other programs it would starve,
    and the network with it."""
    if hasattr(os, "nice"):
        os.nice(5)


def make_loader(
    dataset: torch.utils.data.Dataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    odds: torch.Tensor | None = None,
) -> DataLoader:
    """Return a DataLoader over ``dataset`` whose order and augmentation depend on ``seed`` and the epoch alone.

    Not on the number of workers or of processes, and not on what was drawn before.

    Args:
        dataset: anything with a length and items that the default collation can stack; of a TensorDataset whole batches
            are taken at once.
        batch_size: items for each batch; the last batch may be smaller, unless ``shuffle``.
        shuffle: a new seeded order and new random numbers for every epoch; for the training split only. Items that do
            not fill a batch are left to another epoch's order: batch normalisation fails on a batch of one, and a
            small batch's gradient would count as much as a whole one's.
        seed: see above.
        workers: processes that prepare batches; 0 does it in this process.
        odds: with ``shuffle``, how often each item is drawn compared to others; see :class:`EpochOrder`.
    """
    whole = isinstance(dataset, torch.utils.data.TensorDataset)
    if whole:
        dataset = _Rows(dataset)
    elif shuffle:
        dataset = SeededItems(dataset, seed)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochOrder(len(dataset), seed, odds) if shuffle else None,
        drop_last=shuffle,
        collate_fn=_keep_batch if whole else None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=None if torch.cuda.is_available() else _step_back,
        # DataLoader draws its workers' seeds from it: the global generator is left to the network's dropout.
        generator=torch.Generator().manual_seed(seed),
    )
