"""derma.fetch against a server on loopback that fails in every way there is."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from derma import fetch, web
from derma.dataset import CLASSES, SPLITS, LesionData
from derma.sample import draw_picture
from tests.server import Server

ROOT = Path(__file__).parent.parent
COUNTS = {"train": (4, 8, 4), "valid": (2, 3, 2), "test": (2, 4, 2)}
ALL = sum(map(sum, COUNTS.values()))
PARTS = {"train": "ISIC-2017_Training", "valid": "ISIC-2017_Validation", "test": "ISIC-2017_Test_v2"}


@pytest.fixture(scope="module")
def pictures():
    """Originals as JPEG bytes: ``{split: {class: {name: bytes}}}``."""
    number, everything = 0, {}
    for split, counts in COUNTS.items():
        everything[split] = {label: {} for label in CLASSES}
        for label, count in zip(CLASSES, counts):
            for _ in range(count):
                file = io.BytesIO()
                draw_picture(label, np.random.default_rng((5, number)), (400, 300)).save(file, "JPEG", quality=90)
                everything[split][label][f"ISIC_{number:07}"] = file.getvalue()
                number += 1
    return everything


def make_zip(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, (name, content) in enumerate(members):
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
    return file.getvalue()


@pytest.fixture(scope="module")
def files(pictures):
    """What both sources serve: the challenge's zips and ground truths, and the mirror's zips."""
    served = {}
    for split, classes in pictures.items():
        part = PARTS[split]
        named = sorted((name, content, label) for label, each in classes.items() for name, content in each.items())
        members = [(f"{part}_Data/", b"")]
        for name, content, _ in named:
            members += [(f"{part}_Data/{name}.jpg", content), (f"{part}_Data/{name}_superpixels.png", b"mask" * 50)]
        served[f"/{part}_Data.zip"] = make_zip(members)
        rows = [f"{name},{float(label == CLASSES[0])},{float(label == CLASSES[2])}" for name, _, label in named]
        truth = "\n".join(["image_id,melanoma,seborrheic_keratosis", *rows])
        served[f"/{part}_Part3_GroundTruth.csv"] = truth.encode()
        members = [(f"{split}/{label}/{name}.jpg", content) for name, content, label in named]
        members += [(f"__MACOSX/{split}/melanoma/._x.jpg", b"resource fork"), (f"{split}/.DS_Store", b"")]
        served[f"/{split}.zip"] = make_zip(members)
    return served


@pytest.fixture
def server(files):
    server = Server(dict(files))
    yield server
    server.stop()


def run(server, out, *options):
    """The command, with short patience."""
    arguments = [str(out), "--address", server.address, "--timeout", "1", "--retries", "2", *options]
    return fetch.main(arguments)


def digest(folder):
    """Every file's name and contents, as one hash for each."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pictures_in(folder):
    return {name: value for name, value in digest(folder).items() if name.endswith(".jpg")}


@pytest.fixture(scope="module")
def faultless(files, tmp_path_factory):
    """The folder that a run without faults makes."""
    server = Server(dict(files))
    out = tmp_path_factory.mktemp("faultless") / "isic2017"
    # The address stands in ATTRIBUTION.txt; it is the only file that differs from server to server.
    assert run(server, out) == 0
    server.stop()
    return out


def assert_complete(out, faultless):
    found, expected = digest(out), digest(faultless)
    assert found.pop("ATTRIBUTION.txt") and expected.pop("ATTRIBUTION.txt")
    assert found == expected


# --- a server that behaves -------------------------------------------------------------------------------------------


def test_challenge_in_the_designs_layout(faultless, pictures):
    data = LesionData(faultless)
    assert {split: tuple(data.counts.loc[split, list(CLASSES)]) for split in SPLITS} == COUNTS
    assert data.unreadable.empty
    for split, classes in pictures.items():
        for label, each in classes.items():
            assert {path.stem for path in (faultless / split / label).iterdir()} == set(each)
    for path in faultless.rglob("*.jpg"):
        assert min(Image.open(path).size) == 256
    others = {path.name for path in faultless.iterdir() if path.is_file()}
    assert others == {"ATTRIBUTION.txt", "LICENSE.txt", *(f"{part}_Part3_GroundTruth.csv" for part in PARTS.values())}
    assert "CC0" in (faultless / "LICENSE.txt").read_text()
    assert "1710.05006" in (faultless / "ATTRIBUTION.txt").read_text()


def test_mirror_gives_the_same_pictures(server, tmp_path, faultless):
    assert run(server, tmp_path / "isic2017", "--source", "udacity") == 0
    assert pictures_in(tmp_path / "isic2017") == pictures_in(faultless)


def test_downloaded_zips_give_the_same_folder(files, tmp_path, faultless):
    (tmp_path / "zips").mkdir()
    for name, content in files.items():
        (tmp_path / "zips" / name[1:]).write_bytes(content)
    assert fetch.main([str(tmp_path / "out"), "--address", str(tmp_path / "zips")]) == 0
    assert_complete(tmp_path / "out", faultless)


def test_only_the_pictures_are_read_and_nothing_twice(server, tmp_path, files):
    assert run(server, tmp_path / "out") == 0
    zips = sum(len(content) for name, content in files.items() if name.startswith("/ISIC") and name.endswith("zip"))
    assert server.sent < zips + len(SPLITS) * (web.TAIL + 2000)
    sent = server.sent
    assert run(server, tmp_path / "out") == 0
    assert server.sent - sent < len(SPLITS) * (web.TAIL + 2000)  # directories and ground truths


def test_resumes_image_by_image(server, tmp_path, faultless):
    out = tmp_path / "out"
    assert run(server, out) == 0
    gone = sorted(out.rglob("*.jpg"))[::3]
    for path in gone:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    server.requests.clear()
    assert run(server, out, "--connections", "1") == 0
    assert_complete(out, faultless)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    # For each split the ground truth, the zip's size and its directory; then one request for each picture.
    assert sum(server.requests.values()) == len(SPLITS) * 3 + len(gone)


def test_dry_run_tells_sizes_and_writes_nothing(server, tmp_path, capsys, pictures):
    assert run(server, tmp_path / "out", "--dry-run") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[2:]}
    assert [rows[split][0] for split in SPLITS] == [str(sum(COUNTS[split])) for split in SPLITS]
    size = sum(len(content) for classes in pictures.values() for each in classes.values() for content in each.values())
    assert float(rows["all"][2]) == pytest.approx(size / 1e6, rel=0.1)
    assert not (tmp_path / "out").exists()


def test_progress_shows_images_bytes_rate_and_time_left(server, tmp_path):
    server.faults[r"zip$"] = "slow", 10**6
    command = [sys.executable, "-c", "import sys; sys.stdout.isatty = lambda: True\n"
               "from derma.fetch import main; sys.exit(main(sys.argv[1:]))",
               str(tmp_path / "out"), "--address", server.address, "--connections", "1"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"of {ALL} images" in done.stdout
    assert "B/s" in done.stdout
    assert "<00:" in done.stdout


def test_proxy_is_honoured(server, tmp_path, monkeypatch, faultless):
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("no_proxy", "")
    arguments = [str(tmp_path / "out"), "--address", "http://isic.invalid", "--timeout", "1", "--retries", "0"]
    assert fetch.main(arguments) == 0  # the name does not resolve; only the proxy can have answered
    assert_complete(tmp_path / "out", faultless)
    monkeypatch.setenv("no_proxy", "isic.invalid")
    assert fetch.main([str(tmp_path / "other"), *arguments[1:]]) == 2


# --- faults that pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["reset", "500", "503", "stall", "longer", "shorter", "corrupt", "redirect"])
@pytest.mark.parametrize("where", [r"Training_Data\.zip", r"GroundTruth", r""])
def test_passing_faults_leave_no_trace(server, tmp_path, faultless, fault, where):
    if fault == "corrupt" and where != r"Training_Data\.zip":
        pytest.skip("nothing in a CSV over plain HTTP tells that its bytes are wrong")
    assert run(server, tmp_path / "warm") == 0
    # Faults among the pictures: the directories are read first, and their faults are another test's.
    (tmp_path / "out").mkdir()
    server.faults[where] = fault, 2
    assert run(server, tmp_path / "out") == 0
    assert server.faults[where] == (fault, 0)
    assert_complete(tmp_path / "out", faultless)


@pytest.mark.parametrize("fault", ["reset", "500", "stall", "longer", "shorter", "corrupt"])
def test_faults_in_the_middle_of_the_pictures(server, tmp_path, faultless, fault, monkeypatch):
    bring_all = fetch.bring_all

    def with_faults(*arguments):
        server.faults["zip$"] = fault, 2
        return bring_all(*arguments)

    monkeypatch.setattr(fetch, "bring_all", with_faults)
    assert run(server, tmp_path / "out") == 0
    assert server.faults["zip$"] == (fault, 0)
    assert_complete(tmp_path / "out", faultless)


def test_retry_after_is_waited_for(server, tmp_path):
    server.faults["Training_Data.zip"] = "503", 1
    started = time.monotonic()
    assert run(server, tmp_path / "out", "--retries", "1") == 0
    assert time.monotonic() - started > 1  # a first pause of our own would be half a second


# --- faults that stay ------------------------------------------------------------------------------------------------


def one_sentence(capsys):
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("reset", "tries: 3"),
        ("500", "500 Internal Server Error"),
        ("503", "503 Service Unavailable"),
        ("stall", "timed out"),
        ("longer", "tries: 3"),
        ("shorter", "tries: 3"),
        ("404", "404 Not Found"),
        ("no ranges", "no parts of them (HTTP ranges)"),
    ],
)
def test_lasting_faults_end_in_one_sentence_and_keep_what_arrived(
    server, tmp_path, capsys, faultless, fault, says, monkeypatch
):
    bring_all = fetch.bring_all

    def broken_after_a_while(jobs, *others):
        jobs = list(jobs)
        bring_all(jobs[:10], *others)
        server.faults["."] = fault, 10**6
        return bring_all(jobs, *others)

    monkeypatch.setattr(fetch, "bring_all", broken_after_a_while)
    out = tmp_path / "out"
    assert run(server, out) == 2
    sentence = one_sentence(capsys)
    assert says in sentence
    assert server.address in sentence
    assert f"What has arrived is kept (10 pictures in {out})." in sentence
    kept = pictures_in(out)
    assert kept.items() <= pictures_in(faultless).items()
    assert len(kept) == 10
    assert not list(out.rglob("*.part"))

    server.faults.clear()
    monkeypatch.undo()
    assert run(server, out) == 0
    assert_complete(out, faultless)


@pytest.mark.parametrize("fault", ["404", "500", "no ranges", "stall"])
def test_nothing_to_be_had_at_all(server, tmp_path, capsys, fault):
    server.faults["zip$"] = fault, 10**6
    assert run(server, tmp_path / "out") == 2
    assert "ISIC-2017_Training_Data.zip: " in one_sentence(capsys)


def test_no_ranges_does_not_download_the_whole_zip(server, tmp_path):
    server.files["/ISIC-2017_Training_Data.zip"] += bytes(50_000_000)
    server.faults["zip$"] = "no ranges", 10**6
    assert run(server, tmp_path / "out") == 2
    assert server.sent < 10_000_000


def test_lasting_corruption_names_the_picture_and_brings_the_others(server, tmp_path, capsys, faultless, files):
    path = "/ISIC-2017_Training_Data.zip"
    with zipfile.ZipFile(io.BytesIO(files[path])) as archive:
        victim = [member for member in archive.infolist() if member.filename.endswith(".jpg")][3]
    middle = victim.header_offset + 2000
    content = bytearray(files[path])
    content[middle : middle + 50] = bytes(50)
    server.files[path] = bytes(content)
    out = tmp_path / "out"
    assert run(server, out) == 2
    stem = Path(victim.filename).stem
    sentence = one_sentence(capsys)
    assert stem in sentence
    assert "missing ISIC-2017_Training_Data.zip/" in sentence
    report = pd.read_csv(out / "refused.csv")
    assert len(report) == 1
    assert "Bad CRC-32" in report["reason"][0] or "Error -3" in report["reason"][0]
    expected = {name: value for name, value in pictures_in(faultless).items() if stem not in name}
    assert pictures_in(out) == expected

    server.files[path] = files[path]
    assert run(server, out) == 0  # mended on the server: only it is fetched, and the report goes
    assert_complete(out, faultless)


def test_unsafe_missing_and_unreadable_members_are_named(server, tmp_path, capsys, pictures):
    label, each = CLASSES[1], pictures["valid"][CLASSES[1]]
    names = sorted(each)
    outside = zipfile.ZipInfo("../../valid/nevus/escape.jpg")
    members = [
        ("valid/melanoma/good.jpg", next(iter(pictures["valid"]["melanoma"].values()))),
        ("valid/nevus/text.jpg", b"no picture"),
        ("valid/nevus/torn.jpg", each[names[0]][:3000]),
        ("valid/nevus/twice.jpg", each[names[1]]),
        ("valid/nevus/twice.JPG", each[names[1]]),
        (outside, each[names[2]]),
    ]
    server.files["/valid.zip"] = make_zip(members)
    out = tmp_path / "out"
    assert run(server, out, "--source", "udacity") == 2
    report = pd.read_csv(out / "refused.csv").set_index("file")["reason"]
    assert len(report) == 4
    assert report["valid.zip/../../valid/nevus/escape.jpg"] == "points outside the folder"
    assert report["valid.zip/valid/nevus/text.jpg"] == "not a picture"
    assert "truncated" in report["valid.zip/valid/nevus/torn.jpg"]
    assert report["valid.zip/valid/nevus/twice.JPG"] == "there is another of this name"
    assert not list(tmp_path.rglob("escape*"))
    assert {path.stem for path in (out / "valid").rglob("*.jpg")} == {"good", "twice"}, label


def test_a_truth_without_its_picture(server, tmp_path, capsys):
    path = "/ISIC-2017_Validation_Part3_GroundTruth.csv"
    server.files[path] += b"\nISIC_9999999,0,0"
    assert run(server, tmp_path / "out") == 2
    assert "ISIC_9999999.jpg (not in the zip)" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("/ISIC-2017_Training_Part3_GroundTruth.csv", b"<html>404</html>", "GroundTruth.csv, row 1: "),
        ("/ISIC-2017_Training_Part3_GroundTruth.csv", b"image_id,melanoma,seborrheic_keratosis\nISIC_1,1,1", "is both"),
        ("/ISIC-2017_Training_Data.zip", b"<html>sign in</html>" * 100, "not a zip"),
        ("/ISIC-2017_Training_Data.zip", make_zip([("readme.txt", b"hello")]), "none of the pictures is in there"),
    ],
)
def test_wrong_files(server, tmp_path, capsys, path, content, says):
    server.files[path] = content
    assert run(server, tmp_path / "out") == 2
    assert says in one_sentence(capsys)


def test_other_ends_in_one_sentence(server, tmp_path, capsys):
    assert fetch.main([str(tmp_path / "out"), "--address", str(tmp_path / "nowhere")]) == 2
    assert "No such file" in one_sentence(capsys)
    (tmp_path / "file").write_text("")
    assert run(server, tmp_path / "file") == 2
    assert str(tmp_path / "file") in one_sentence(capsys)
    assert fetch.main(["--address", "http://127.0.0.1:9", "--retries", "0", str(tmp_path / "out")]) == 2
    assert "refused" in one_sentence(capsys)
    with pytest.raises(SystemExit) as stopped:
        fetch.main(["--retries", "many"])
    assert stopped.value.code == 2


def test_two_at_a_time_do_not_meet(server, tmp_path, capsys):
    with fetch.writing_into(tmp_path / "out"):
        assert run(server, tmp_path / "out") == 2
    assert "another process is writing into it" in one_sentence(capsys)


# --- killed ----------------------------------------------------------------------------------------------------------


def test_killed_twenty_times_at_random_moments(server, tmp_path, faultless):
    """SIGKILL: nothing can be tidied up, and nothing may be lost or left half written."""
    server.faults[r"zip$"] = "slow", 10**6
    out, chance = tmp_path / "out", random.Random(0)
    # A child that has already imported forks for each run: what is killed is the work, and not Python's start.
    code = (
        "import os, sys\nfrom derma.fetch import main\nprint('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)\n"  # the pipe's lines are the parent's
        "        os._exit(main(sys.argv[1:]))\n"
        "    print(child, flush=True)\n"
        "    print('end', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(out), "--address", server.address, "--connections", "2"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    parent = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TQDM_DISABLE": "1"}, **pipes)
    try:
        assert parent.stdout.readline() == "ready\n"

        def begin():
            parent.stdin.write("go\n")
            return int(parent.stdout.readline())

        def end():
            return next(line for line in iter(parent.stdout.readline, "") if line.startswith("end"))

        started = time.monotonic()
        begin()
        assert end() == "end 0\n"
        takes = time.monotonic() - started
        killed, had = 0, set()
        while killed < 20:
            if len(pictures_in(out)) > ALL / 2:
                shutil.rmtree(out)
            child = begin()
            time.sleep(chance.uniform(0, takes))
            with suppress(ProcessLookupError):  # it was done before
                os.kill(child, signal.SIGKILL)
            killed += end() == "end -9\n"
            kept = pictures_in(out)
            assert kept.items() <= pictures_in(faultless).items()
            had.add(len(kept))
        assert len(had) > 3  # it came to different points
    finally:
        parent.kill()
    server.faults.clear()
    assert run(server, out) == 0
    assert_complete(out, faultless)
    assert not list(tmp_path.rglob("*.part"))


# --- extra pictures from the ISIC Archive ----------------------------------------------------------------------------


class Archive:
    """The ISIC Archive's search, as far as derma.fetch uses it: pages with a cursor, and each image's own address."""

    def __init__(self, server, page=3):
        self.server, self.page, self.records = server, page, []
        server.files["/api/images/search/"] = self.search

    def add(self, name, label, content, **changes):
        path = f"/full/{name}.jpg"
        self.server.files[path] = content
        levels = {
            "melanoma": ["Malignant", "Malignant melanocytic proliferations (Melanoma)", "Melanoma Invasive"],
            "nevus": ["Benign", "Benign melanocytic proliferations", "Nevus"],
            "seborrheic_keratosis": ["Benign", "Benign epidermal proliferations", "Seborrheic keratosis"],
        }[label]
        record = {
            "isic_id": name, "copyright_license": "CC-BY", "attribution": "A Hospital",
            "files": {"full": {"url": self.server.address + path, "size": len(content)}},
            "metadata": {"clinical": {f"diagnosis_{i}": level for i, level in enumerate(levels, 1)}, "acquisition": {}},
        }  # fmt: skip
        self.records.append(record | changes)

    def search(self, parts):
        query = parse_qs(parts.query)
        assert "image_type:dermoscopic" in query["query"][0]
        wanted = [
            record for record in self.records
            if any(str(value) in query["query"][0] for value in list(record["metadata"]["clinical"].values())[1:])
        ]  # fmt: skip
        start = int(query.get("cursor", ["0"])[0])
        rest = start + self.page
        following = f"{self.server.address}/api/images/search/?{parts.query.split('&cursor')[0]}&cursor={rest}"
        page = {"count": len(wanted), "next": following if rest < len(wanted) else None, "previous": None}
        return json.dumps(page | {"results": wanted[start:rest]}).encode()


def draw(label, *seed):
    file = io.BytesIO()
    draw_picture(label, np.random.default_rng(seed), (400, 300)).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture
def archive(server, faultless, tmp_path, monkeypatch):
    """Eight new images of each class, and three that must never be trained on."""
    archive = Archive(server)
    names = sorted(path.stem for path in faultless.rglob("*.jpg"))
    pd.DataFrame({"id": names}).to_csv(tmp_path / "official.csv", index=False)
    monkeypatch.setattr(fetch, "OFFICIAL", tmp_path / "official.csv")
    for number, label in enumerate(CLASSES):
        for each in range(8):
            archive.add(f"ISIC_1{number}{each:05}", label, draw(label, 77, number, each))
    test = sorted((faultless / "test" / "nevus").iterdir())[0]
    mirrored = io.BytesIO()
    Image.open(test).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored, "JPEG", quality=70)
    archive.add("ISIC_2000000", "nevus", test.read_bytes())
    archive.add("ISIC_2000001", "nevus", mirrored.getvalue())
    archive.add(test.stem, "nevus", draw("nevus", 1))  # its name alone keeps it out
    archive.add("ISIC_3000000", "melanoma", draw("melanoma", 3), copyright_license=None)
    return archive


def run_extra(server, out, official, *options):
    return run(server, out, "--extra", "--address", f"{server.address}/api", "--official", str(official), *options)


def extra_names(out):
    return {path.stem for path in out.rglob("*.jpg")}


NEW = {f"ISIC_1{number}{each:05}" for number in range(3) for each in range(8)}


def test_extra_brings_new_images_with_licences_and_no_official_ones(server, archive, tmp_path, faultless, capsys):
    out = tmp_path / "extra"
    assert run_extra(server, out, faultless) == 0
    assert extra_names(out) == NEW
    metadata = pd.read_csv(out / "metadata.csv").set_index("isic_id")
    assert set(metadata.index) == NEW
    assert set(metadata["licence"]) == {"CC-BY"}
    assert set(metadata["attribution"]) == {"A Hospital"}
    assert metadata.loc["ISIC_1000000", "diagnosis"].endswith("(Melanoma): Melanoma Invasive")
    report = pd.read_csv(out / "refused.csv")
    assert set(report["file"]) == {"ISIC_2000000", "ISIC_2000001"}
    assert report["reason"].str.match(r"shows the photograph of ISIC_\d+ \(test\)").all()
    assert "metadata.csv" in (out / "ATTRIBUTION.txt").read_text()
    data = LesionData(faultless, out)
    assert data.counts.loc["train", "all"] == sum(COUNTS["train"]) + 24
    assert data.counts.loc["test", "all"] == sum(COUNTS["test"])

    # Again: nothing is fetched twice, not even what was refused.
    server.requests.clear()
    assert run_extra(server, out, faultless) == 0
    assert not [path for path in server.requests if path.startswith("/full")]
    assert extra_names(out) == NEW
    assert len(pd.read_csv(out / "metadata.csv")) == 24


def test_extra_goes_on_where_it_stopped(server, archive, tmp_path, faultless, capsys):
    out = tmp_path / "extra"
    server.faults["/full/ISIC_11"] = "500", 10**6
    assert run_extra(server, out, faultless, "--connections", "1") == 2
    assert "ISIC_11" in one_sentence(capsys)
    # Nothing is let in before it has been compared with the official images.
    assert not list(out.glob("*/*.jpg")) or all(".incoming" in path.parts for path in out.rglob("*.jpg"))
    arrived = extra_names(out)
    server.faults.clear()
    server.requests.clear()
    assert run_extra(server, out, faultless) == 0
    assert extra_names(out) == NEW
    assert len([path for path in server.requests if path.startswith("/full")]) == 26 - len(arrived)


@pytest.mark.parametrize("fault", ["503", "reset", "stall", "longer"])
def test_extra_pages_are_asked_for_again(server, archive, tmp_path, faultless, fault):
    server.faults["search"] = fault, 2
    assert run_extra(server, tmp_path / "extra", faultless) == 0
    assert extra_names(tmp_path / "extra") == NEW


def test_extra_most_counts_each_class(server, archive, tmp_path, faultless):
    assert run_extra(server, tmp_path / "extra", faultless, "--most", "4") == 0
    for label in CLASSES:
        assert len(list((tmp_path / "extra" / label).iterdir())) == 4


def test_extra_dry_run(server, archive, tmp_path, faultless, capsys):
    assert run_extra(server, tmp_path / "extra", faultless, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert ["melanoma", "8"] in [line.split()[:2] for line in shown.splitlines()]
    assert not (tmp_path / "extra").exists()


def test_extra_names_unreadable_images_and_brings_the_others(server, archive, tmp_path, faultless, capsys):
    archive.add("ISIC_4000000", "nevus", b"no picture")
    assert run_extra(server, tmp_path / "extra", faultless) == 2
    assert "ISIC_4000000 (not a picture)" in one_sentence(capsys)
    assert extra_names(tmp_path / "extra") == NEW


def test_extra_names_images_that_the_archive_lists_and_does_not_have(server, archive, tmp_path, faultless, capsys):
    archive.add("ISIC_4000000", "nevus", b"")
    del server.files["/full/ISIC_4000000.jpg"]
    assert run_extra(server, tmp_path / "extra", faultless) == 2
    assert "404 Not Found" in one_sentence(capsys)
    assert extra_names(tmp_path / "extra") == NEW


def test_extra_does_not_go_into_a_folder_of_splits(server, archive, tmp_path, faultless, capsys):
    (tmp_path / "data" / "train").mkdir(parents=True)
    assert run_extra(server, tmp_path / "data", faultless) == 2
    assert "holds splits" in one_sentence(capsys)


def test_extra_needs_the_official_images(server, archive, tmp_path, capsys):
    assert run_extra(server, tmp_path / "extra", tmp_path / "nowhere") == 2
    assert "kept out of training" in one_sentence(capsys)


@pytest.mark.parametrize("answer", [b"<html>", b'{"detail": "no"}', b'{"results": [{"isic_id": 1}], "next": null}'])
def test_extra_from_something_else(server, archive, tmp_path, faultless, capsys, answer):
    server.files["/api/images/search/"] = answer
    assert run_extra(server, tmp_path / "extra", faultless) == 2
    assert "ISIC Archive" in one_sentence(capsys)


def test_extra_waits_for_the_whole_official_set(server, archive, tmp_path, faultless, capsys):
    """A duplicate of an image that is not there would not be noticed."""
    official, out = Path(shutil.copytree(faultless, tmp_path / "official")), tmp_path / "extra"
    copied = sorted((official / "test" / "nevus").iterdir())[0]
    whole = copied.read_bytes()
    for content in (None, b"x"):
        copied.unlink() if content is None else copied.write_bytes(content)
        assert run_extra(server, out, official) == 2
        assert f"1 of the official images are missing or unreadable, such as {copied.stem};" in one_sentence(capsys)
        assert not out.exists()
    # And what had come in beside another official set is looked at again.
    copied.write_bytes(whole)
    (out / "nevus").mkdir(parents=True)
    (out / "nevus" / "ISIC_2000000.jpg").write_bytes(whole)
    assert run_extra(server, out, official) == 0
    assert extra_names(out) == NEW


@pytest.mark.parametrize("name", ["metadata.csv", "refused.csv"])
def test_extra_leaves_tables_of_others_alone(server, archive, tmp_path, faultless, capsys, name):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / name).write_text("isic_id,age\nISIC_1,40\n")
    assert run_extra(server, tmp_path / "extra", faultless) == 2
    assert f"{name}: not a table that this command has written" in one_sentence(capsys)
    assert (tmp_path / "extra" / name).read_text() == "isic_id,age\nISIC_1,40\n"


def test_a_truth_in_another_encoding(server, tmp_path, faultless):
    name = "ISIC-2017_Validation_Part3_GroundTruth.csv"
    server.files[f"/{name}"] = server.files[f"/{name}"].decode().encode("utf-16")
    assert run(server, tmp_path / "out") == 0
    assert pictures_in(tmp_path / "out") == pictures_in(faultless)
    assert (tmp_path / "out" / name).read_bytes() == server.files[f"/{name}"]


def test_an_empty_zip_is_said_to_be_empty(server, tmp_path, capsys):
    server.files["/ISIC-2017_Training_Data.zip"] = make_zip([])
    assert run(server, tmp_path / "out") == 2
    assert "none of the pictures is in there" in one_sentence(capsys)


def test_bad_proxies_are_named(server, tmp_path, capsys, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    assert run(server, tmp_path / "out") == 2
    assert "socks5://127.0.0.1:9: the environment names this proxy" in one_sentence(capsys)


def test_an_address_that_is_none(tmp_path, capsys):
    assert fetch.main([str(tmp_path / "out"), "--address", "http://[::1", "--retries", "0"]) == 2
    assert "not a web address" in one_sentence(capsys)
    assert not (tmp_path / "out").exists()  # an empty folder would be taken for a data folder


def test_an_empty_picture_is_fetched_again(server, tmp_path, faultless):
    out = Path(shutil.copytree(faultless, tmp_path / "out"))
    picture = next(out.rglob("*.jpg"))
    whole = picture.read_bytes()
    picture.write_bytes(b"")
    assert run(server, out) == 0 and picture.read_bytes() == whole
