"""Bring the images of ISIC 2017 part 3 into ``data/isic2017``, small and sorted, without 11 GB on disk.

    python -m derma.fetch                        # from the challenge's own archives
    python -m derma.fetch --dry-run              # how much there is to fetch
    python -m derma.fetch --source udacity       # from Udacity's mirror
    python -m derma.fetch --address DOWNLOADS    # from the same zips, downloaded by hand
    python -m derma.fetch --extra                # further training images from the ISIC Archive, into data/extra

Each picture is read straight out of the zip on the server, shrunk as ``derma.shrink`` does it, and written all or
nothing. What is there is not fetched again: after an interruption, the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlencode

import numpy as np
import pandas as pd
from tqdm import tqdm

from derma.check import OFFICIAL
from derma.commands import Parser, whole_number
from derma.dataset import CLASSES, SPLITS, DatasetError, LesionData
from derma.duplicates import find_duplicates
from derma.shrink import SHORT_SIDE, SUFFIXES, Busy, Refused, is_here, shrink, unsafe, write_jpeg, writing_into
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
    """Where the three splits lie.

    Attributes:
        address: of the folder that holds the files below; a URL or a path.
        zips: one for each split.
        truths: the challenge's ground truth file for each split; if empty, the zips have class folders.
    """

    address: str
    zips: dict[str, str]
    truths: dict[str, str]

    def locate(self, name: str) -> str:
        """Return a file's URL or path."""
        return f"{self.address.rstrip('/')}/{name}"


_PARTS = {"train": "ISIC-2017_Training", "valid": "ISIC-2017_Validation", "test": "ISIC-2017_Test_v2"}
SOURCES = {
    "challenge": Source(
        "https://isic-challenge-data.s3.amazonaws.com/2017/",
        {split: f"{part}_Data.zip" for split, part in _PARTS.items()},
        {split: f"{part}_Part3_GroundTruth.csv" for split, part in _PARTS.items()},
    ),
    "udacity": Source(
        "https://s3-us-west-1.amazonaws.com/udacity-dlnfd/datasets/skin-cancer/",
        {split: f"{split}.zip" for split in SPLITS},
        {},
    ),
}


@dataclass(frozen=True)
class Job:
    """One picture to fetch: its name in messages, where it goes, its bytes on the way, and how to get them."""

    name: str
    target: Path
    size: int
    read: Callable[[], bytes]


# --- what there is ---------------------------------------------------------------------------------------------------


def _classes_from(truth: Path) -> dict[str, str]:
    """Return each image's class by a ground truth file of the challenge."""
    values = read_table(truth, truth=True).values.astype(bool)
    both = values.index[values.all(axis=1)]
    if len(both):
        raise TableError(f"{truth}: {both[0]} is both melanoma and seborrheic keratosis; fetch the file again.")
    numbers = np.select([values["task_1"], values["task_2"]], [0, 2], default=1)
    return {name: CLASSES[number] for name, number in zip(values.index, numbers, strict=True)}


def _get_file(location: str, web: Web) -> bytes:
    return web.get(location) if is_url(location) else Path(location).read_bytes()


def _find(archive: RemoteZip, classes: dict[str, str] | None) -> Iterator[tuple]:
    """Yield ``(member, name without ending, class, problem)`` for each picture of a zip that belongs to a class."""
    for member in archive.members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if member.is_dir() or path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        label = path.parent.name if classes is None else classes.get(path.stem)
        if label in CLASSES and "__MACOSX" not in path.parts:  # the others: masks, what file managers leave
            yield member, path.stem, label, unsafe(member)


def _plan(source: Source, out: Path, truths: Path, web: Web) -> tuple[dict[str, list[Job]], list[tuple[str, str]]]:
    """Return the pictures of each split, and those that must be refused, with reasons.

    The challenge's ground truth files are written to ``truths`` on the way.
    """
    jobs, refused = {}, []
    for split in SPLITS:
        classes = None
        if source.truths:
            file, location = truths / source.truths[split], source.locate(source.truths[split])
            file.write_bytes(_get_file(location, web))
            try:
                classes = _classes_from(file)
            except TableError as error:
                raise TableError(str(error).replace(str(file), location)) from None
        archive = RemoteZip(source.locate(source.zips[split]), web)
        found: dict[str, Job] = {}
        for member, stem, label, problem in _find(archive, classes):
            name = f"{source.zips[split]}/{member.filename}"
            if problem is None and stem in found:
                problem = "there is another of this name"
            if problem is not None:
                refused.append((name, problem))
                continue
            target = out / split / label / f"{stem}.jpg"
            found[stem] = Job(name, target, member.compress_size, partial(archive.read, member))
        refused += [
            (f"{source.zips[split]}/{stem}.jpg", "not in the zip") for stem in sorted({*(classes or ())} - {*found})
        ]
        if not found:
            raise Unreachable(
                f"{source.locate(source.zips[split])}: none of the pictures is in there; check the address."
            )
        jobs[split] = list(found.values())
    return jobs, refused


# --- getting it ------------------------------------------------------------------------------------------------------


def _bring(job: Job, short_side: int) -> str | None:
    """Fetch, shrink and write one picture; returns the reason if it was refused."""
    try:
        write_jpeg(shrink(job.read(), short_side), job.target)
    except (Refused, Damaged) as problem:
        return str(problem)
    return None


def bring_all(jobs: Iterable[Job], web: Web, connections: int, short_side: int) -> list[tuple[str, str]]:
    """Fetch, shrink and write pictures, several at a time, with a progress bar.

    Args:
        jobs: those whose target exists are passed over.
        web: what the jobs read from.
        connections: pictures on their way at a time, and threads: decoding releases Python's lock.
        short_side: in pixels; see ``derma.shrink``.

    Returns:
        Name and reason of each picture that was refused.

    Raises:
        Unreachable, OSError: the server or the disk gave up; all that had arrived is kept.
    """
    jobs = list(jobs)
    todo = [job for job in jobs if not is_here(job.target)]
    refused, here = [], len(jobs) - len(todo)
    bar = tqdm(
        total=sum(job.size for job in todo), unit="B", unit_scale=True, file=sys.stdout, leave=False,
        mininterval=0.1 if sys.stdout.isatty() else 30, dynamic_ncols=True,
    )  # fmt: skip
    with bar, ThreadPoolExecutor(connections) as pool:
        futures = {pool.submit(_bring, job, short_side): job for job in todo}
        try:
            for future in as_completed(futures):
                job, reason = futures[future], future.result()
                if reason is not None:
                    refused.append((job.name, reason))
                here += reason is None
                bar.set_postfix_str(f"{here:,} of {len(jobs):,} images", refresh=False)
                bar.update(job.size)
        except BaseException:
            web.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return refused


def write_bytes(content: bytes, file: Path) -> None:
    """Write a file, all or nothing."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.part")
    unfinished.write_bytes(content)
    os.replace(unfinished, file)


def write_text(text: str, file: Path) -> None:
    """Write a text file, all or nothing."""
    write_bytes(text.encode(), file)


def write_report(refused: list[tuple[str, str]], out: Path) -> None:
    """Write ``out/refused.csv``, or remove it if nothing was refused."""
    if refused:
        write_text(pd.DataFrame(sorted(refused), columns=["file", "reason"]).to_csv(index=False), out / "refused.csv")
    else:
        (out / "refused.csv").unlink(missing_ok=True)


def fetch(
    source: Source, out: Path, web: Web, connections: int = 8, short_side: int = SHORT_SIDE
) -> list[tuple[str, str]]:
    """Bring all three splits into ``out/{train,valid,test}/<class>``, with licence, attribution and ground truth.

    Args:
        source: where from.
        out: what is there is kept and not fetched again.
        web: to get it with.
        connections: pictures on their way at a time.
        short_side: in pixels; a folder begun with another one keeps those pictures as they are.

    Returns:
        Name and reason of each picture that is missing; the same as in ``out/refused.csv``.

    Raises:
        Unreachable, TableError, FileNotFoundError: the source does not give what is needed.
        Busy, OSError: ``out`` cannot be written into.
    """
    with writing_into(out), tempfile.TemporaryDirectory() as scratch:
        jobs, refused = _plan(source, out, Path(scratch), web)
        for name in source.truths.values():
            write_bytes((Path(scratch) / name).read_bytes(), out / name)
        write_text(ATTRIBUTION.format(address=source.address), out / "ATTRIBUTION.txt")
        write_text(LICENCE, out / "LICENSE.txt")
        refused += bring_all((job for split in SPLITS for job in jobs[split]), web, connections, short_side)
        write_report(refused, out)
        return refused


def sizes(source: Source, out: Path, web: Web) -> pd.DataFrame:
    """Return what :func:`fetch` would do: for each split its pictures, those here, and the MB still to fetch."""
    with tempfile.TemporaryDirectory() as scratch:
        jobs, _ = _plan(source, out, Path(scratch), web)
    rows = {}
    for split, pictures in jobs.items():
        todo = [job for job in pictures if not is_here(job.target)]
        rows[split] = len(pictures), len(pictures) - len(todo), sum(job.size for job in todo) / 1e6
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["images", "here", "MB to fetch"])
    table.loc["all"] = table.sum()
    return table.astype({"images": int, "here": int}).round(1)


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
The licence of each, and whom it asks to be named, stand in metadata.csv. They were made smaller by derma.shrink;
nothing else was changed.
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


def _list_extra(api: str, most: int, never: set[str], web: Web) -> pd.DataFrame:
    """Return up to ``most`` records for each class: one row for each image, without those in ``never``."""
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
            if not name.replace("_", "").isalnum() or name in never or not licence:
                continue
            diagnosis = [clinical.get(f"diagnosis_{level}") for level in range(1, 6)]
            row = {"isic_id": name, "class": label, "diagnosis": ": ".join(filter(None, diagnosis))}
            rows.append(row | {"licence": licence, "attribution": record.get("attribution"), "url": url, "size": size})
            count += 1
    columns = ["isic_id", "class", "diagnosis", "licence", "attribution", "url", "size"]
    table = pd.DataFrame(rows, columns=columns)
    return table.drop_duplicates("isic_id", ignore_index=True)


def _get_image(web: Web, url: str) -> bytes:
    """Return one image's file; one that the archive lists and does not have is no reason to stop."""
    try:
        return web.get(url)
    except NotThere as error:
        raise Damaged(str(error)) from None


def _known_duplicates(out: Path) -> pd.DataFrame:
    """Return what an earlier call refused for showing an official photograph: it need not be fetched again."""
    if not (out / "refused.csv").exists():
        return pd.DataFrame(columns=["file", "reason"])
    report = pd.read_csv(out / "refused.csv")
    _require(report, ("file", "reason"), out / "refused.csv")
    return report[report["reason"].str.startswith(SAME)]


def _require(table: pd.DataFrame, columns: Iterable[str], file: Path) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise TableError(
            f"{file}: not a table that this command has written (it has no column '{missing[0]}'); move it away, or "
            "name another folder."
        )


def require_complete(official: LesionData) -> None:
    """Refuse a folder that lacks official images: a duplicate of one that is not there would not be noticed.

    Raises:
        DatasetError: some are missing or unreadable.
    """
    here = {Path(path).stem for split in SPLITS for path, _ in official.split(split).samples}
    missing = sorted(set(pd.read_csv(OFFICIAL)["id"]) - here)
    if missing:
        raise DatasetError(
            f"{official.root}: {len(missing):,} of the official images are missing or unreadable, such as "
            f"{missing[0]}; fetch them first (make data), since what shows the photograph of a missing one would be "
            "let in."
        )


def _remove_official(arrived: list[Path], official: LesionData) -> list[tuple[str, str]]:
    """Delete those of the pictures that show an official photograph; returns their names and why."""
    owner = {path: split for split in SPLITS for path, _ in official.split(split).samples}
    removed = []
    while arrived:
        groups = [False] * len(owner) + [True] * len(arrived)
        pairs = find_duplicates([*owner, *arrived], groups)
        theirs = {
            (second if first in owner else first): (first if first in owner else second)
            for first, second in zip(pairs["first"], pairs["second"], strict=True)
        }
        if not theirs:
            break
        for file, original in theirs.items():
            Path(file).unlink()
            removed.append((Path(file).stem, f"{SAME} {Path(original).stem} ({owner[original]})"))
        # Only the nearest few of each picture are compared: what those hid is looked for among the rest.
        arrived = [path for path in arrived if path.exists()]
    return removed


def fetch_extra(
    out: Path, official: LesionData, web: Web, most: int, api: str = API, connections: int = 8,
    short_side: int = SHORT_SIDE,
) -> list[tuple[str, str]]:  # fmt: skip
    """Bring further images of the three classes from the ISIC Archive into ``out/<class>``, for training only.

    What arrives waits in ``out/.incoming`` until it has been compared with every official image: one that has the name
    of an official one or shows its photograph is never let in. ``out/metadata.csv`` holds diagnosis, licence and
    attribution for each that is.

    Args:
        out: what is there is kept and not fetched again.
        official: the opened ISIC 2017 folder.
        web: to get it with.
        most: images for each class.
        api: the archive's address.
        connections, short_side: as in :func:`fetch`.

    Returns:
        Name and reason of each picture that could not be fetched or read; they stand in ``out/refused.csv``, as do
        those that were left out.

    Raises:
        Unreachable: the archive does not give what is needed; all that had arrived is kept.
        DatasetError, TableError: official images are missing, or a table in ``out`` is somebody else's.
        Busy, OSError: ``out`` cannot be written into.
    """
    require_complete(official)
    with writing_into(out):
        known = _known_duplicates(out)
        metadata, columns = out / "metadata.csv", ("isic_id", "class", "licence", "attribution", "url")
        before = pd.read_csv(metadata) if metadata.exists() else pd.DataFrame(columns=columns)
        _require(before, columns, metadata)
        names = set(pd.read_csv(OFFICIAL)["id"]) | {
            Path(path).stem for split in SPLITS for path, _ in official.split(split).samples
        }
        table = _list_extra(api, most, names | set(known["file"]), web)
        incoming = out / ".incoming"
        jobs = []
        for row in table.rename(columns={"class": "label"}).itertuples():
            name = f"{row.label}/{row.isic_id}.jpg"
            if not is_here(out / name):
                jobs.append(Job(row.isic_id, incoming / name, row.size, partial(_get_image, web, row.url)))
        refused = bring_all(jobs, web, connections, short_side)
        # Those of earlier calls are looked at again: the official folder may have been another one then.
        left_out = _remove_official(sorted(out.rglob("*.jpg")), official)
        left_out += list(known.itertuples(index=False, name=None))

        # Licences first: no picture is let in without its own.
        if len(before):
            table = pd.concat([before, table]).drop_duplicates("isic_id", keep="last")
        arrived = {path.stem for path in out.rglob("*.jpg")}
        table = table[table["isic_id"].isin(arrived)].sort_values("isic_id").drop(columns="size")
        write_text(table.to_csv(index=False), metadata)
        write_text(EXTRA_ATTRIBUTION.format(api=api), out / "ATTRIBUTION.txt")
        for row in table.rename(columns={"class": "label"}).itertuples():
            name = f"{row.label}/{row.isic_id}.jpg"
            if (incoming / name).exists():
                (out / name).parent.mkdir(exist_ok=True)
                os.replace(incoming / name, out / name)
        write_report(refused + left_out, out)
        return refused


# --- the command -----------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.fetch``; returns the exit code, 2 if anything is missing in the end."""
    parser = Parser(prog="python -m derma.fetch", description="Bring the ISIC 2017 images, small and sorted.")
    parser.add_argument("out", type=Path, nargs="?", help="default: data/isic2017, or data/extra with --extra")
    parser.add_argument("--source", choices=SOURCES, default="challenge", help="whose zips; default: %(default)s")
    parser.add_argument("--address", metavar="URL_OR_FOLDER", help="where the same files lie, if not with the source")
    parser.add_argument("--dry-run", action="store_true", help="tell the sizes, and fetch nothing")
    parser.add_argument("--extra", action="store_true", help="further training images from the ISIC Archive")
    parser.add_argument(
        "--official", type=Path, default=Path("data/isic2017"), metavar="FOLDER",
        help="with --extra: the ISIC 2017 images, which are kept out; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--most",
        type=whole_number(1),
        default=2000,
        metavar="N",
        help="with --extra: images of each class; default: %(default)s",
    )
    parser.add_argument(
        "--short-side", type=whole_number(16, 8192), default=SHORT_SIDE, metavar="PIXELS", help="default: %(default)s"
    )
    parser.add_argument(
        "--connections",
        type=whole_number(1, 64),
        default=8,
        metavar="N",
        help="pictures at a time; default: %(default)s",
    )
    parser.add_argument(
        "--timeout",
        type=whole_number(1, 3600),
        default=30,
        metavar="SECONDS",
        help="of a server's silence; default: %(default)s",
    )
    parser.add_argument(
        "--retries",
        type=whole_number(0, 100),
        default=6,
        metavar="N",
        help="tries after the first; default: %(default)s",
    )
    options = parser.parse_args(arguments)
    web = Web(options.connections, options.timeout, options.retries)
    out = options.out or Path("data/extra" if options.extra else "data/isic2017")
    try:
        return _extra(options, out, web) if options.extra else _challenge(options, out, web)
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
    print(message + (f" What has arrived is kept ({kept:,} pictures in {out})." if kept else ""), file=sys.stderr)
    return 2


def _challenge(options, out: Path, web: Web) -> int:
    source = SOURCES[options.source]
    if options.address is not None:
        source = replace(source, address=options.address)
    print(f"Asking {source.address}", flush=True)  # what follows may try for a minute
    if options.dry_run:
        print(sizes(source, out, web).to_string())
        return 0
    missing = fetch(source, out, web, options.connections, options.short_side)
    there = {split: sum(1 for _ in (out / split).rglob("*.jpg")) for split in SPLITS}
    print(f"{out}: {sum(there.values()):,} pictures ({', '.join(f'{split} {n:,}' for split, n in there.items())}).")
    return _tell_missing(missing, out)


def _extra(options, out: Path, web: Web) -> int:
    api = options.address or API
    if options.dry_run:
        table = _list_extra(api, options.most, set(pd.read_csv(OFFICIAL)["id"]), web)
        classes = table.groupby("class")["size"]
        print(pd.DataFrame({"images": classes.count(), "MB": (classes.sum() / 1e6).round(1)}).to_string())
        return 0
    if not options.official.is_dir():
        raise DatasetError(
            f"{options.official}: no such folder; its images must be kept out of training, so fetch them first, or "
            "name their folder with --official."
        )
    if (out / "train").exists():
        raise DatasetError(f"{out}: holds splits; extra images are for training alone, so name a folder of their own.")
    missing = fetch_extra(
        out, LesionData(options.official), web, options.most, api, options.connections, options.short_side
    )
    there = {label: sum(1 for _ in (out / label).glob("*.jpg")) for label in CLASSES}
    print(f"{out}: {sum(there.values()):,} pictures ({', '.join(f'{label} {n:,}' for label, n in there.items())}).")
    print(f"Licences and attributions: {out / 'metadata.csv'}. Train on them with DERMA_EXTRA={out}.")
    return _tell_missing(missing, out)


def _tell_missing(missing: list[tuple[str, str]], out: Path) -> int:
    if not missing:
        return 0
    (name, reason), *others = missing
    more = f" and {len(others):,} more" if others else ""
    print(
        f"{out}: missing {name} ({reason}){more}, as {out / 'refused.csv'} says; the same command tries again.",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
