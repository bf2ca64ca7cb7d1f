"""Bring the images of ISIC 2017 part 3 into ``data/isic2017``, small and sorted, without 11 GB on disk.

    python -m derma.fetch                        # from the challenge's own archives
    python -m derma.fetch --dry-run              # how much there is to fetch
    python -m derma.fetch --source udacity       # from Udacity's mirror
    python -m derma.fetch --address DOWNLOADS    # from the same zips, downloaded by hand
    python -m derma.fetch --extra                # further training images from the ISIC Archive, into data/extra

Each image is read straight out of the zip on the server, shrunk as ``derma.shrink`` does it, and written all or
nothing. Existing images are not fetched again: after an interruption, the same command continues.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlencode

import numpy as np
import pandas as pd

from derma.check import OFFICIAL
from derma.commands import Parser, progress, whole_number
from derma.dataset import CLASSES, SPLITS, DatasetError, LesionData
from derma.files import write_bytes, write_text
from derma.leaks import training_leaks
from derma.shrink import SHORT_SIDE, SUFFIXES, Busy, Refused, is_written, shrink, unsafe, write_jpeg, writing_into
from derma.tables import TableError, read_table
from derma.web import Damaged, NotThere, RemoteZip, Unreachable, Web, is_url

ATTRIBUTION = """\
Images: ISIC 2017, Skin Lesion Analysis Toward Melanoma Detection, part 3 (https://challenge.isic-archive.com/data/#2017),
under CC-0 (LICENSE.txt). They were made smaller by derma.shrink; nothing else was changed. Fetched from
{address}

When you use them, cite: Codella N, Gutman D, Celebi ME, Helba B, Marchetti MA, Dusza S, Kalloo A, Liopyris K,
Mishra N, Kittler H, Halpern A. "Skin Lesion Analysis Toward Melanoma Detection: A Challenge at the 2017 International
Symposium on Biomedical Imaging (ISBI), Hosted by the International Skin Imaging Collaboration (ISIC)".
arXiv:1710.05006, 2017.
"""
LICENCE = """\
The images in this folder are dedicated to the public domain under Creative Commons CC0 1.0 Universal:
https://creativecommons.org/publicdomain/zero/1.0/legalcode
"""


@dataclass(frozen=True)
class Source:
    """A URL or folder with a zip for each split, and their ground truths: none where the zips have class folders."""

    address: str
    zips: tuple[str, str, str]
    truths: tuple[str, str, str] | tuple[()]

    def locate(self, name: str) -> str:
        """Return a file's URL or path."""
        return f"{self.address.rstrip('/')}/{name}"


SOURCES = {
    "challenge": Source(
        "https://isic-challenge-data.s3.amazonaws.com/2017/",
        ("ISIC-2017_Training_Data.zip", "ISIC-2017_Validation_Data.zip", "ISIC-2017_Test_v2_Data.zip"),
        tuple(f"ISIC-2017_{part}_Part3_GroundTruth.csv" for part in ("Training", "Validation", "Test_v2")),
    ),
    "udacity": Source(
        "https://s3-us-west-1.amazonaws.com/udacity-dlnfd/datasets/skin-cancer/",
        ("train.zip", "valid.zip", "test.zip"),
        (),
    ),
}
Reasons = list[tuple[str, str]]  # names of images that could not be had, each with the reason


@dataclass(frozen=True)
class Job:
    """One image to fetch: its name in messages, where it goes, its size in bytes, and how to get them."""

    name: str
    target: Path
    size: int
    read: Callable[[], bytes]


def _classes_from(content: bytes, location: str, file: Path) -> dict[str, str]:
    """Write a ground truth file of the challenge, and return each image's class."""
    write_bytes(content, file)
    try:
        values = read_table(file, truth=True).values.astype(bool)
    except TableError as error:
        raise TableError(str(error).replace(str(file), location)) from None
    both = values.index[values.all(axis=1)]
    if len(both):
        raise TableError(f"{location}: {both[0]} is both melanoma and seborrheic keratosis; fetch the file again.")
    numbers = np.select([values["task_1"], values["task_2"]], [0, 2], default=1)
    return {name: CLASSES[number] for name, number in zip(values.index, numbers, strict=True)}


def _plan(source: Source, out: Path, truths: Path, web: Web) -> tuple[dict[str, list[Job]], Reasons]:
    """Return the images of each split, and the refused ones; writes the challenge's ground truths to ``truths``."""
    jobs, refused = {}, []
    for number, (split, file) in enumerate(zip(SPLITS, source.zips)):
        classes = None
        if source.truths:
            location = source.locate(source.truths[number])
            content = web.get(location) if is_url(location) else Path(location).read_bytes()
            classes = _classes_from(content, location, truths / source.truths[number])
        archive = RemoteZip(source.locate(file), web)
        found: dict[str, Job] = {}
        for member in archive.members:
            path = PurePosixPath(member.filename.replace("\\", "/"))
            label = path.parent.name if classes is None else classes.get(path.stem)
            image = path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and "__MACOSX" not in path.parts
            if member.is_dir() or not image or label not in CLASSES:  # masks, and what file managers add
                continue
            name = f"{file}/{member.filename}"
            problem = unsafe(member) or ("there is another of this name" if path.stem in found else None)
            if problem is None:
                target = out / split / label / f"{path.stem}.jpg"
                found[path.stem] = Job(name, target, member.compress_size, partial(archive.read, member))
            else:
                refused.append((name, problem))
        if not found:
            raise Unreachable(f"{source.locate(file)}: it holds none of the images; check the address.")
        missing = sorted(set(classes or ()) - set(found))
        refused += [(f"{file}/{stem}.jpg", "not in the zip") for stem in missing]
        jobs[split] = list(found.values())
    return jobs, refused


def _fetch_one(job: Job, short_side: int) -> str | None:
    """Fetch, shrink and write one image; returns the reason if it was refused."""
    try:
        return write_jpeg(shrink(job.read(), short_side), job.target)
    except (Refused, Damaged) as problem:
        return str(problem)


def fetch_images(jobs: list[Job], web: Web, short_side: int) -> Reasons:
    """Fetch, shrink and write the images that do not exist, with a progress bar; returns the refused ones.

    Each of the ``web``'s connections has a thread, which decodes too: Pillow releases Python's lock. If the server or
    the disk fails (Unreachable, OSError), the images that had arrived are kept.
    """
    todo = [job for job in jobs if not is_written(job.target)]
    refused, count = [], len(jobs) - len(todo)
    bar = progress(total=sum(job.size for job in todo), unit="B", unit_scale=True)
    with bar, ThreadPoolExecutor(web.connections) as pool:
        futures = {pool.submit(_fetch_one, job, short_side): job for job in todo}
        try:
            for future in as_completed(futures):
                job, reason = futures[future], future.result()
                if reason is not None:
                    refused.append((job.name, reason))
                count += reason is None
                bar.set_postfix_str(f"{count:,} of {len(jobs):,} images", refresh=False)
                bar.update(job.size)
        except BaseException:
            web.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return refused


def write_report(refused: Reasons, out: Path) -> None:
    """Write ``out/refused.csv``, or remove it if nothing was refused."""
    (out / "refused.csv").unlink(missing_ok=True)
    if refused:
        write_text(pd.DataFrame(sorted(refused), columns=["file", "reason"]).to_csv(index=False), out / "refused.csv")


def fetch(source: Source, out: Path, web: Web, short_side: int = SHORT_SIDE) -> Reasons:
    """Bring all three splits into ``out/{train,valid,test}/<class>``, with licence, attribution and ground truth.

    Existing images are kept as they are. The returned names and reasons of missing images are in ``out/refused.csv``.

    Raises:
        Unreachable, TableError, FileNotFoundError: the source does not give what is needed.
        Busy, OSError: ``out`` cannot be written into.
    """
    with writing_into(out), tempfile.TemporaryDirectory() as scratch:
        jobs, refused = _plan(source, out, Path(scratch), web)
        for name in source.truths:
            write_bytes((Path(scratch) / name).read_bytes(), out / name)
        write_text(ATTRIBUTION.format(address=source.address), out / "ATTRIBUTION.txt")
        write_text(LICENCE, out / "LICENSE.txt")
        refused += fetch_images([job for each in jobs.values() for job in each], web, short_side)
        write_report(refused, out)
        return refused


def sizes(source: Source, out: Path, web: Web) -> pd.DataFrame:
    """Return what :func:`fetch` would do: for each split its images, those fetched already, and MB still to fetch."""
    with tempfile.TemporaryDirectory() as scratch:
        jobs, _ = _plan(source, out, Path(scratch), web)
    rows = {}
    for split, images in jobs.items():
        todo = [job.size for job in images if not is_written(job.target)]
        rows[split] = len(images), len(images) - len(todo), sum(todo) / 1e6
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["images", "fetched", "MB to fetch"])
    table.loc["all"] = table.sum()
    return table.astype({"images": int, "fetched": int}).round(1)


# --- further training images from the ISIC Archive -------------------------------------------------------------------

API = "https://api.isic-archive.com/api/v2/"  # https://api.isic-archive.com/api/docs/swagger/
# The archive's diagnoses (https://github.com/ImageMarkup/isic-metadata) that the challenge's three classes are.
QUERIES = {
    "melanoma": 'diagnosis_2:"Malignant melanocytic proliferations (Melanoma)"',
    "nevus": "diagnosis_3:Nevus",
    "seborrheic_keratosis": 'diagnosis_3:"Seborrheic keratosis"',
}
PAGE = 100  # images
SAME = "shows the photograph of"
EXTRA_ATTRIBUTION = """\
Images of the ISIC Archive (https://www.isic-archive.com), fetched from {api}
metadata.csv holds the licence and the attribution of each. They were made smaller by derma.shrink; nothing else was
changed.
"""


def _pages(api: str, label: str, web: Web) -> Iterator[dict]:
    """Yield the archive's records of dermoscopic images of a class, page by page."""
    query = urlencode({"query": f"{QUERIES[label]} AND image_type:dermoscopic", "limit": PAGE})
    url: str | None = f"{api.rstrip('/')}/images/search/?{query}"
    while url:
        content = web.get(url)
        try:
            page = json.loads(content)
            records, url = page["results"], page["next"]
        except (ValueError, KeyError, TypeError):
            raise Unreachable(f"{url}: not an answer of the ISIC Archive; check the address.") from None
        yield from records


def _list_extra(api: str, most: int, excluded: set[str], web: Web) -> pd.DataFrame:
    """Return up to ``most`` records for each class: one row for each image, without those in ``excluded``."""
    rows = []
    for label in CLASSES:
        count = 0
        for record in _pages(api, label, web):
            if count == most:
                break
            try:
                name, full = str(record["isic_id"]), record["files"]["full"]
                url, size, licence = str(full["url"]), int(full["size"]), record["copyright_license"]
                clinical = record["metadata"].get("clinical", {})
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise Unreachable(f"{api}: a record of {label} lacks {error}; is it the ISIC Archive's API?") from None
            if not name.replace("_", "").isalnum() or name in excluded or not licence:
                continue
            diagnosis = ": ".join(filter(None, (clinical.get(f"diagnosis_{level}") for level in range(1, 6))))
            rows.append((name, label, diagnosis, licence, record.get("attribution"), url, size))
            count += 1
    columns = ["isic_id", "class", "diagnosis", "licence", "attribution", "url", "size"]
    return pd.DataFrame(rows, columns=columns).drop_duplicates("isic_id", ignore_index=True)


def _get_image(web: Web, url: str) -> bytes:
    """Return one image's file; one that the archive lists but does not have is refused, and the others go on."""
    try:
        return web.get(url)
    except NotThere as error:
        raise Damaged(str(error)) from None


def _read_own(file: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return a table that an earlier call wrote, empty if there is none."""
    table = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=columns)
    missing = [name for name in columns if name not in table]
    if missing:
        raise TableError(f"{file}: not a table of this command (no column '{missing[0]}'); name another folder.")
    return table


def require_complete(official: LesionData) -> set[str]:
    """Return the names of all official images, without endings.

    Raises:
        DatasetError: the folder lacks some; a duplicate of a missing one would not be noticed.
    """
    names, found = set(pd.read_csv(OFFICIAL)["id"]), set(official.images["path"].map(lambda path: Path(path).stem))
    missing = sorted(names - found)
    if missing:
        raise DatasetError(
            f"{official.root}: {len(missing):,} of the official images are missing or unreadable, such as "
            f"{missing[0]}; fetch them first (make data), since duplicates of missing ones would be trained on."
        )
    return names | found


def _remove_official(arrived: list[Path], official: LesionData) -> Reasons:
    """Delete the images that show an official photograph; returns their names, and which."""
    if not arrived:
        return []
    extra = pd.DataFrame({"path": [str(path) for path in arrived], "split": "extra"})
    leaks = training_leaks(pd.concat([official.images, extra], ignore_index=True), trained=())
    removed = []
    for leak in leaks.drop_duplicates("train").itertuples():
        Path(leak.train).unlink()
        removed.append((Path(leak.train).stem, f"{SAME} {Path(leak.other).stem} ({leak.split})"))
    return removed


def fetch_extra(
    out: Path, official: LesionData, web: Web, most: int, api: str = API, short_side: int = SHORT_SIDE
) -> Reasons:
    """Bring further images of the three classes from the ISIC Archive into ``out/<class>``, for training only.

    New images wait in ``out/.incoming`` until they have been compared with every official image. One that has the name
    of an official image or shows its photograph is refused. ``out/metadata.csv`` holds diagnosis, licence and
    attribution of the others.

    Args:
        official: the opened ISIC 2017 folder.
        most: images for each class.
        api: the archive's address.

    Returns:
        Name and reason of each image that could not be had; ``out/refused.csv`` holds them and the duplicates.

    Raises:
        Unreachable, TableError, Busy, OSError: as :func:`fetch`; the images that had arrived are kept.
        DatasetError: official images are missing.
    """
    names = require_complete(official)
    with writing_into(out):
        report = _read_own(out / "refused.csv", ("file", "reason"))
        before = _read_own(out / "metadata.csv", ("isic_id", "class", "licence", "attribution", "url"))
        known = report[report["reason"].str.startswith(SAME)]  # need not be fetched again
        table = _list_extra(api, most, names | set(known["file"]), web)
        incoming, jobs = out / ".incoming", []
        for name, label, url, size in table[["isic_id", "class", "url", "size"]].itertuples(index=False):
            if not is_written(out / label / f"{name}.jpg"):
                jobs.append(Job(name, incoming / label / f"{name}.jpg", size, partial(_get_image, web, url)))
        refused = fetch_images(jobs, web, short_side)
        # Images of earlier calls are compared again: the official folder may have been another one then.
        duplicates = _remove_official(sorted(out.rglob("*.jpg")), official)

        # Licences first: no image is added without its own.
        table = (pd.concat([before, table]) if len(before) else table).drop_duplicates("isic_id", keep="last")
        arrived = {path.stem for path in out.rglob("*.jpg")}
        table = table[table["isic_id"].isin(arrived)].sort_values("isic_id").drop(columns="size")
        write_text(table.to_csv(index=False), out / "metadata.csv")
        write_text(EXTRA_ATTRIBUTION.format(api=api), out / "ATTRIBUTION.txt")
        for name, label in zip(table["isic_id"], table["class"]):
            if (incoming / label / f"{name}.jpg").exists():
                (out / label).mkdir(exist_ok=True)
                os.replace(incoming / label / f"{name}.jpg", out / label / f"{name}.jpg")
        write_report(refused + duplicates + list(known.itertuples(index=False, name=None)), out)
        return refused


# --- the command -----------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.fetch``; returns the exit code, 2 if an image is missing in the end."""
    parser = Parser(prog="python -m derma.fetch", description="Bring the ISIC 2017 images, small and sorted.")
    add = parser.add_argument
    add("out", type=Path, nargs="?", help="default: data/isic2017, or data/extra with --extra")
    add("--source", choices=SOURCES, default="challenge", help="whose zips; default: %(default)s")
    add("--address", metavar="URL_OR_FOLDER", help="another place with the same files")
    add("--dry-run", action="store_true", help="print the sizes and fetch nothing")
    add("--extra", action="store_true", help="further training images from the ISIC Archive")
    official = Path("data/isic2017")
    text = "with --extra: the ISIC 2017 images; default: %(default)s"
    add("--official", type=Path, default=official, metavar="FOLDER", help=text)
    for name, low, high, default, unit, what in (
        ("most", 1, 2**31, 2000, "N", "with --extra: images of each class"),
        ("short-side", 16, 8192, SHORT_SIDE, "PIXELS", "of the images written"),
        ("connections", 1, 64, 8, "N", "images at a time"),
        ("timeout", 1, 3600, 30, "SECONDS", "of a server's silence"),
        ("retries", 0, 100, 6, "N", "tries after the first"),
    ):
        text = f"{what}; default: %(default)s"
        add(f"--{name}", type=whole_number(low, high), default=default, metavar=unit, help=text)
    options = parser.parse_args(arguments)
    out = options.out or Path("data/extra" if options.extra else "data/isic2017")
    try:
        web = Web(options.connections, options.timeout, options.retries)
        missing = (_run_extra if options.extra else _run_challenge)(options, out, web)
        if missing:
            (name, reason), *others = missing
            more = f" and {len(others):,} more" if others else ""
            report = out / "refused.csv"
            print(f"{out}: missing {name} ({reason}){more}, see {report}; run the command again.", file=sys.stderr)
        return 2 if missing else 0
    except Unreachable as error:
        message = str(error)
        if not options.extra and options.address is None:
            message = message.removesuffix(".") + ", or name another --source, or a folder of the zips with --address."
    except (TableError, Busy, DatasetError) as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or out}: {error.strerror or error}; name another place."
    except KeyboardInterrupt:
        message = "Interrupted."
    kept = sum(1 for _ in out.rglob("*.jpg")) if out.is_dir() else 0
    print(message + (f" What has arrived is kept ({kept:,} images in {out})." if kept else ""), file=sys.stderr)
    return 2


def _run_challenge(options: Namespace, out: Path, web: Web) -> Reasons:
    source = SOURCES[options.source]
    if options.address is not None:
        source = replace(source, address=options.address)
    print(f"Asking {source.address}", flush=True)  # the first answer may take a minute
    if options.dry_run:
        print(sizes(source, out, web).to_string())
        return []
    missing = fetch(source, out, web, options.short_side)
    _print_counts(out, SPLITS)
    return missing


def _run_extra(options: Namespace, out: Path, web: Web) -> Reasons:
    api, folder = options.address or API, options.official
    if options.dry_run:
        classes = _list_extra(api, options.most, set(pd.read_csv(OFFICIAL)["id"]), web).groupby("class")["size"]
        print(pd.DataFrame({"images": classes.count(), "MB": (classes.sum() / 1e6).round(1)}).to_string())
        return []
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; fetch the official images first, or name it with --official.")
    if (out / "train").exists():
        raise DatasetError(f"{out}: holds splits; extra images are for training alone, so name a separate folder.")
    missing = fetch_extra(out, LesionData(folder), web, options.most, api, options.short_side)
    _print_counts(out, CLASSES)
    print(f"Licences and attributions: {out / 'metadata.csv'}. Train on them with DERMA_EXTRA={out}.")
    return missing


def _print_counts(out: Path, folders: Iterable[str]) -> None:
    counts = {name: sum(1 for _ in (out / name).rglob("*.jpg")) for name in folders}
    print(f"{out}: {sum(counts.values()):,} images ({', '.join(f'{name} {n:,}' for name, n in counts.items())}).")


if __name__ == "__main__":
    sys.exit(main())
