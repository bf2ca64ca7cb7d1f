"""Bring the images of ISIC 2017 part 3 into ``data/isic2017``, small and sorted, without 11 GB on disk.

    python -m derma.fetch                        # from the challenge's own archives
    python -m derma.fetch --dry-run              # how much there is to fetch
    python -m derma.fetch --source udacity       # from Udacity's mirror
    python -m derma.fetch --address DOWNLOADS    # from the same zips, downloaded by hand
    python -m derma.fetch --extra                # further training images from the ISIC Archive, into data/extra

Each image is read straight out of the zip on the server, shrunk as ``derma.shrink`` does it, and written all or
nothing. Existing images are not fetched again: after an interruption, the same command continues.
"""

import io
import os
from argparse import Namespace
from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import urlencode

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, HttpUrl, JsonValue, NonNegativeInt, ValidationError, create_model

from derma import shrink
from derma.check import OFFICIAL
from derma.commands import CommandError, Parser, run_main, whole_number
from derma.dataset import CLASSES, SPLITS, DatasetError, LesionData
from derma.files import write_bytes, write_text
from derma.leaks import training_leaks
from derma.shrink import Original, Reasons, shrink_originals, write_report, writing_into
from derma.web import Web, public

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
# An address, and the zip of each split there. The challenge's zips have ground truths, the mirror's have class folders.
SOURCES = {
    "challenge": (
        "https://isic-challenge-data.s3.amazonaws.com/2017",
        ("ISIC-2017_Training_Data.zip", "ISIC-2017_Validation_Data.zip", "ISIC-2017_Test_v2_Data.zip"),
    ),
    "udacity": (
        "https://s3-us-west-1.amazonaws.com/udacity-dlnfd/datasets/skin-cancer",
        ("train.zip", "valid.zip", "test.zip"),
    ),
}
API = "https://api.isic-archive.com/api/v2"  # https://api.isic-archive.com/api/docs/swagger/
# The archive's diagnoses (https://github.com/ImageMarkup/isic-metadata) that the challenge's three classes are.
QUERIES = {
    "melanoma": 'diagnosis_2:"Malignant melanocytic proliferations (Melanoma)"',
    "nevus": "diagnosis_3:Nevus",
    "seborrheic_keratosis": 'diagnosis_3:"Seborrheic keratosis"',
}
PAGE = 100  # records
SAME = "shows the photograph of"
EXTRA_ATTRIBUTION = """\
Images of the ISIC Archive (https://www.isic-archive.com), fetched from {api}
metadata.csv holds the licence and the attribution of each. They were made smaller by derma.shrink; nothing else was
changed.
"""
Jobs = list[tuple[Original, Path]]  # images, each with the file it becomes
DIAGNOSES = [f"diagnosis_{level}" for level in range(1, 6)]  # of a record, from the general to the special
CLINICAL = create_model("Clinical", **dict.fromkeys([*DIAGNOSES, "lesion_id"], (str | None, None)))


class Record(BaseModel):
    """What is read of the archive's record of an image; all else in it is ignored."""

    isic_id: str = Field(pattern=r"^[A-Za-z0-9_]+$")  # becomes a file's name
    copyright_license: str | None
    attribution: str | None = None
    files: create_model("Files", full=create_model("Full", url=HttpUrl, size=NonNegativeInt))
    metadata: create_model("Metadata", clinical=CLINICAL)


class Page(BaseModel):
    """What the archive answers to a query."""

    # Whatever else stands there does not spoil the Records among them.
    results: list[Annotated[Record | JsonValue, Field(union_mode="left_to_right")]]
    next: HttpUrl | None


def _read_truth(location: str, web: Web) -> tuple[bytes, dict[str, str]]:
    """Return a ground truth file of the challenge, and each image's class."""
    content = web.get(location) if "://" in location else Path(location).read_bytes()
    try:
        table = pd.read_csv(io.BytesIO(content)).set_index("image_id")
        numbers = np.select([table["melanoma"] == 1, table["seborrheic_keratosis"] == 1], [0, 2], default=1)
    except (KeyError, ValueError):
        raise CommandError(f"{location}: not a ground truth of the challenge; check the address.") from None
    return content, {name: CLASSES[number] for name, number in zip(table.index, numbers, strict=True)}


def plan(source: str, address: str, out: Path, web: Web) -> tuple[Jobs, dict[str, bytes], Reasons]:
    """Return the images at the address of a source of ``SOURCES``, its ground truth files, and what its zips lack."""
    jobs, truths, missing = [], {}, []
    for split, file in zip(SPLITS, SOURCES[source][1], strict=True):
        classes, found = None, set()
        if source == "challenge":
            truth = file.replace("Data.zip", "Part3_GroundTruth.csv")
            truths[truth], classes = _read_truth(f"{address}/{truth}", web)
        for original in shrink.find_originals(f"{address}/{file}", web):
            path = PurePosixPath(original.name)
            label = path.parent.name if classes is None else classes.get(path.stem)
            if label in CLASSES:  # masks have none
                target = out / split / label / f"{path.stem}.jpg"
                jobs.append((original._replace(name=f"{file}/{original.name}"), target))
                found.add(path.stem)
        if not found:
            raise CommandError(f"{address}/{file}: it holds none of the images; check the address.")
        missing += [(f"{file}/{stem}.jpg", "not in the zip") for stem in sorted(set(classes or ()) - found)]
    return jobs, truths, missing


def list_extra(api: str, most: int, excluded: set[str], web: Web) -> tuple[pd.DataFrame, Reasons]:
    """Return up to ``most`` dermoscopic images for each class from the ISIC Archive, and the records that are wrong.

    Those in ``excluded`` are passed over.
    """
    rows, wrong, excluded = [], [], set(excluded)
    for label in CLASSES:
        query = urlencode({"query": f"{QUERIES[label]} AND image_type:dermoscopic", "limit": PAGE})
        url, count, asked = f"{api}/images/search/?{query}", 0, set()
        while url and url not in asked and count < most:
            asked.add(url)
            try:
                page = Page.model_validate_json(web.get(url))
            except ValidationError:
                raise CommandError(f"{public(url)}: not an answer of the ISIC Archive; check the address.") from None
            for record in page.results:
                if not isinstance(record, Record):
                    name = record.get("isic_id") if isinstance(record, dict) else record
                    wrong.append((str(name)[:80], "the archive's record of it is incomplete or wrong"))
                elif count < most and record.isic_id not in excluded and record.copyright_license:
                    clinical = dict(record.metadata.clinical)
                    diagnosis = ": ".join(filter(None, map(clinical.get, DIAGNOSES)))
                    licences, full = (record.copyright_license, record.attribution), record.files.full
                    lesion = clinical["lesion_id"]
                    rows.append((record.isic_id, label, diagnosis, lesion, *licences, str(full.url), full.size))
                    excluded.add(record.isic_id)
                    count += 1
            url = str(page.next or "")
    if wrong and not rows:
        raise CommandError(f"{api}: not the ISIC Archive, as all records are incomplete or wrong; check the address.")
    columns = ["isic_id", "class", "diagnosis", "lesion_id", "licence", "attribution", "url", "size"]
    return pd.DataFrame(rows, columns=columns), wrong


def plan_extra(api: str, out: Path, most: int, web: Web) -> tuple[Jobs, pd.DataFrame, Reasons]:
    """Return further images that ``out`` lacks, the archive's table of all, and what is skipped."""
    known = []
    if (out / "refused.csv").exists():
        report = pd.read_csv(out / "refused.csv", dtype=str, keep_default_na=False).itertuples(index=False, name=None)
        known = [(name, reason) for name, reason in report if reason.startswith(SAME)]
    table, wrong = list_extra(api, most, set(pd.read_csv(OFFICIAL)["id"]) | {name for name, _ in known}, web)
    jobs = [
        (Original(name, size, partial(web.get, url)), out / ".incoming" / label / f"{name}.jpg")
        for name, label, url, size in table[["isic_id", "class", "url", "size"]].itertuples(index=False)
        if not (out / label / f"{name}.jpg").exists()
    ]
    return jobs, table.drop(columns="size").assign(url=table["url"].map(public)), known + wrong


def _require_complete(official: LesionData) -> None:
    """Raise DatasetError if an official image is missing: its duplicates would not be noticed."""
    missing = sorted(set(pd.read_csv(OFFICIAL)["id"]) - {Path(path).stem for path in official.images["path"]})
    if missing:
        raise DatasetError(
            f"{official.root}: {len(missing):,} of the official images are missing or unreadable, such as "
            f"{missing[0]}; fetch them first (make data), since duplicates of missing ones would be trained on."
        )


def _remove_official(out: Path, official: LesionData) -> Reasons:
    """Delete the images in ``out`` that show an official photograph; returns their names, and which."""
    extra = pd.DataFrame({"path": [str(path) for path in sorted(out.rglob("*.jpg"))], "split": "extra"})
    leaks = training_leaks(pd.concat([official.images, extra], ignore_index=True), trained=("extra",))
    removed = []
    for leak in leaks.drop_duplicates("train").itertuples():
        Path(leak.train).unlink()
        removed.append((Path(leak.train).stem, f"{SAME} {Path(leak.other).stem} ({leak.split})"))
    return removed


def add_extra(out: Path, table: pd.DataFrame, official: LesionData) -> Reasons:
    """Delete images, of earlier calls too, that show an official photograph; move new ones into ``out/<class>``.

    ``out/metadata.csv`` gets diagnosis, lesion, licence and attribution of each. Returns the removed ones.
    """
    removed = _remove_official(out, official)
    if (out / "metadata.csv").exists():
        table = pd.concat([pd.read_csv(out / "metadata.csv"), table]).drop_duplicates("isic_id", keep="last")
    arrived = {path.stem: path for path in out.rglob("*.jpg")}
    table = table[table["isic_id"].isin(arrived)].sort_values("isic_id")
    write_text(table.to_csv(index=False), out / "metadata.csv")  # first: no image is added without its licence
    for name, label in zip(table["isic_id"], table["class"], strict=True):
        (out / label).mkdir(exist_ok=True)
        os.replace(arrived[name], out / label / f"{name}.jpg")
    return removed


def _print_sizes(jobs: Jobs, out: Path) -> None:
    table = pd.DataFrame({"images": 1, "fetched": [int(path.exists()) for _, path in jobs]})
    table["MB to fetch"] = np.where(table["fetched"], 0, [original.size / 1e6 for original, _ in jobs])
    table.index = [path.parent.relative_to(out).as_posix().removeprefix(".incoming/") for _, path in jobs]
    table = table.groupby(level=0).sum()
    table.loc["all"] = table.sum()
    print(table.astype({"images": int, "fetched": int}).round(1).to_string())


def _print_counts(out: Path, folders: Iterable[str]) -> None:
    counts = {name: sum(1 for _ in (out / name).rglob("*.jpg")) for name in folders}
    print(f"{out}: {sum(counts.values()):,} images ({', '.join(f'{name} {n:,}' for name, n in counts.items())}).")


def fetch_challenge(options: Namespace, address: str, out: Path, web: Web) -> Reasons:
    """Bring all three splits into ``out/{train,valid,test}/<class>``; returns the missing images."""
    jobs, files, missing = plan(options.source, address, out, web)
    if options.dry_run:
        _print_sizes(jobs, out)
        return []
    files |= {"ATTRIBUTION.txt": ATTRIBUTION.format(address=address).encode(), "LICENSE.txt": LICENCE.encode()}
    with writing_into(out):
        for name, content in files.items():
            write_bytes(content, out / name)
        missing += shrink_originals(jobs, options.short_side, web.connections, web.stopped.set)
        write_report(missing, out)
    _print_counts(out, SPLITS)
    return missing


def fetch_extra(options: Namespace, address: str, out: Path, web: Web) -> Reasons:
    """Bring further images of the three classes into ``out/<class>``, for training only; returns the missing ones.

    New images wait in ``out/.incoming`` until they have been compared with every official image. One that has the name
    of an official image or shows its photograph is refused.
    """
    foreign = out.exists() and any(out.iterdir()) and not (out / "ATTRIBUTION.txt").exists()
    if foreign or (out / "train").exists():
        raise CommandError(f"{out}: holds other files than extra training images; name a separate folder.")
    jobs, table, skipped = plan_extra(address, out, options.most, web)
    if options.dry_run:
        _print_sizes(jobs, out)
        return []
    official = LesionData(options.official)
    _require_complete(official)
    with writing_into(out):
        write_text(EXTRA_ATTRIBUTION.format(api=address), out / "ATTRIBUTION.txt")
        missing = shrink_originals(jobs, options.short_side, web.connections, web.stopped.set)
        write_report(missing + add_extra(out, table, official) + skipped, out)
    _print_counts(out, CLASSES)
    print(f"Licences and attributions: {out / 'metadata.csv'}. Train on them with DERMA_DATA={out}.")
    return missing


def _run(options: Namespace, out: Path) -> str:
    """Do what the options say; returns a message if an image is missing in the end."""
    web = Web(options.connections)
    address = web.log_in(options.address or (API if options.extra else SOURCES[options.source][0]))
    print(f"Asking {address}", flush=True)  # the first answer may take a minute
    missing = (fetch_extra if options.extra else fetch_challenge)(options, address, out, web)
    if not missing:
        return ""
    (name, reason), *others = missing
    more = f" and {len(others):,} more" if others else ""
    return f"{out}: missing {name} ({reason}){more}, see {out / 'refused.csv'}; run the command again."


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.fetch``; returns the exit code, 2 if an image is missing in the end."""
    parser = Parser(prog="python -m derma.fetch", description="Bring the ISIC 2017 images, small and sorted.")
    add = parser.add_argument
    add("out", type=Path, nargs="?", help="default: data/isic2017, or data/extra with --extra")
    add("--source", choices=SOURCES, default="challenge", help="whose zips; default: %(default)s")
    add("--address", metavar="URL_OR_FOLDER", help="another place with the same files")
    add("--dry-run", action="store_true", help="print the sizes and fetch nothing")
    add("--extra", action="store_true", help="further training images from the ISIC Archive")
    text = "with --extra: the ISIC 2017 images; default: %(default)s"
    add("--official", type=Path, default="data/isic2017", metavar="FOLDER", help=text)
    text = "with --extra: images of each class; default: %(default)s"
    add("--most", type=whole_number(1, 2**31), default=2000, metavar="N", help=text)
    text = "of the images written; default: %(default)s"
    add("--short-side", type=whole_number(16, 8192), default=shrink.SHORT_SIDE, metavar="PIXELS", help=text)
    text = "images at a time; default: %(default)s"
    add("--connections", type=whole_number(1, 64), default=8, metavar="N", help=text)
    options = parser.parse_args(arguments)
    out = options.out or Path("data/extra" if options.extra else "data/isic2017")
    if ":/" in str(out):
        parser.error("the images go into a folder; write --address before an address")
    return shrink.run_command(partial(_run, options, out), out, DatasetError)


if __name__ == "__main__":
    run_main(main)
