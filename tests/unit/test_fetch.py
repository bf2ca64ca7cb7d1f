"""derma.fetch and derma.web against a server on loopback that fails in every way there is."""

import functools
import io
import json
import multiprocessing
import random
import shutil
import time
import zipfile
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from derma import fetch, web
from derma.dataset import CLASSES, SPLITS, LesionData
from derma.sample import draw_image
from tests.unit.server import Server

COUNTS = {"train": (2, 4, 2), "valid": (1, 2, 1), "test": (1, 3, 1)}
ALL = sum(map(sum, COUNTS.values()))
TRAINING, TRUTH = "/ISIC-2017_Training_Data.zip", "/ISIC-2017_Training_Part3_GroundTruth.csv"
API = "/api/images/search/"


@functools.cache
def draw(label, *seed):
    file = io.BytesIO()
    draw_image(label, np.random.default_rng(seed), (280, 260)).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_zip(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, (name, content) in enumerate(members):
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
    return file.getvalue()


@pytest.fixture(scope="module")
def files():
    """What both sources serve: the challenge's zips and ground truths, and the mirror's zips."""
    served, number = {}, 0
    for split, part in zip(SPLITS, ("Training", "Validation", "Test_v2")):
        rows = ["image_id,melanoma,seborrheic_keratosis"]
        challenge, mirror = [(f"{part}/", b"")], [("__MACOSX/valid/melanoma/._x.jpg", b"fork"), (".DS_Store", b"")]
        for label, count in zip(CLASSES, COUNTS[split]):
            for _ in range(count):
                number += 1
                name, content = f"ISIC_{number:07}", draw(label, 5, number)
                challenge += [(f"{part}/{name}.jpg", content), (f"{part}/{name}_superpixels.png", b"mask")]
                mirror.append((f"{split}/{label}/{name}.jpg", content))
                rows.append(f"{name},{float(label == CLASSES[0])},{float(label == CLASSES[2])}")
        served[f"/ISIC-2017_{part}_Data.zip"] = make_zip(challenge)
        served[f"/ISIC-2017_{part}_Part3_GroundTruth.csv"] = "\n".join(rows).encode()
        served[f"/{split}.zip"] = make_zip(mirror)
    return served


@pytest.fixture
def server(files, monkeypatch):
    monkeypatch.setattr(web, "LONGEST_PAUSE", 0.02)  # seconds
    monkeypatch.setattr(fetch, "Web", lambda connections, timeout, retries: web.Web(connections, timeout / 2, retries))
    server = Server(dict(files))
    yield server
    server.stop()


def run(server, out, *options):
    return fetch.main([str(out), "--address", server.address, "--timeout", "1", "--retries", "2", *options])


def contents(folder, pattern="*.*"):
    """Every file but ATTRIBUTION.txt, which names the address."""
    files = (path for path in folder.rglob(pattern) if path.name != "ATTRIBUTION.txt")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def images(folder):
    return contents(folder, "*.jpg")


@pytest.fixture(scope="module")
def faultless(files, tmp_path_factory):
    """The folder that a run without faults makes."""
    server, out = Server(dict(files)), tmp_path_factory.mktemp("faultless") / "isic2017"
    assert run(server, out) == 0
    server.stop()
    return out


def one_sentence(capsys):
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("\n") == 1, error
    return error


def test_the_folder(faultless):
    data = LesionData(faultless)
    assert {split: tuple(data.counts.loc[split, list(CLASSES)]) for split in SPLITS} == COUNTS
    assert {Image.open(path).size for path in data.images["path"]} == {(276, 256)}
    assert "CC0" in (faultless / "LICENSE.txt").read_text()
    assert "1710.05006" in (faultless / "ATTRIBUTION.txt").read_text()


def test_the_mirror_and_downloaded_zips_give_the_same(server, files, tmp_path, faultless):
    assert run(server, tmp_path / "mirror", "--source", "udacity") == 0
    assert images(tmp_path / "mirror") == images(faultless)
    for name, content in files.items():
        (tmp_path / name[1:]).write_bytes(content)
    assert fetch.main([str(tmp_path / "local"), "--address", str(tmp_path)]) == 0
    assert contents(tmp_path / "local") == contents(faultless)


def test_continues_image_by_image(server, tmp_path, faultless, monkeypatch, capsys):
    monkeypatch.setattr(web, "TAILS", (100, 2**20))  # shorter than a directory
    out = Path(shutil.copytree(faultless, tmp_path / "out"))
    gone, empty, *kept = sorted(out.rglob("*.jpg"))
    gone.unlink()
    empty.write_bytes(b"")  # what a power cut leaves
    times = [path.stat().st_mtime_ns for path in kept]
    assert run(server, out, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["all", str(ALL), str(ALL - 2)]
    server.requests.clear()
    assert run(server, out) == 0
    assert contents(out) == contents(faultless)
    assert [path.stat().st_mtime_ns for path in kept] == times
    # For each split the ground truth, the zip's size and its directory with two lengths; then the images.
    assert sum(server.requests.values()) == len(SPLITS) * 4 + 2


def test_proxies(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", server.address)
    arguments = [str(tmp_path / "out"), "--address", "http://isic.invalid", "--retries", "0"]
    assert fetch.main(arguments) == 0  # the name does not resolve; only the proxy can have answered
    for name, value, says in (("no_proxy", "isic.invalid", "isic.invalid/"), ("http_proxy", "socks9://x", "proxy")):
        monkeypatch.setenv(name, value)
        capsys.readouterr()
        assert fetch.main(arguments) == 2
        assert says in one_sentence(capsys)


def after_planning(monkeypatch, action):
    """Call ``action(jobs)`` before the images are fetched."""
    fetch_images = fetch.fetch_images
    monkeypatch.setattr(fetch, "fetch_images", lambda jobs, *others: (action(jobs), fetch_images(jobs, *others))[1])
    return fetch_images


@pytest.mark.parametrize("fault", ["reset", "500", "503", "stall", "longer", "shorter", "corrupt", "redirect"])
def test_passing_faults_leave_no_trace(server, tmp_path, faultless, fault, monkeypatch):
    server.faults = {TRAINING: (fault, 1), "Validation.*csv": ("reset" if fault == "corrupt" else fault, 1)}
    after_planning(monkeypatch, lambda jobs: server.faults.update({"zip$": (fault, 2)}))
    assert run(server, tmp_path / "out") == 0
    assert not any(times for _, times in server.faults.values())
    assert contents(tmp_path / "out") == contents(faultless)


def test_retry_after_is_waited_for(server, monkeypatch):
    monkeypatch.setattr(web, "LONGEST_PAUSE", 60)
    server.faults["."] = "503", 1
    started = time.monotonic()
    assert web.Web().get(server.address + TRUTH) == server.files[TRUTH]
    assert time.monotonic() - started > 1  # the first pause is half a second otherwise


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("reset", "tries: 3"),
        ("500", "500 Internal"),
        ("stall", "timed out"),
        ("404", "404 Not"),
        ("no ranges", "ranges"),
    ],
)
def test_lasting_faults_end_in_one_sentence_and_keep_what_arrived(
    server, tmp_path, capsys, faultless, fault, says, monkeypatch
):
    def break_after_five(jobs):
        fetch_images(jobs[:5], web.Web(), 256)
        server.faults["."] = fault, 10**6

    fetch_images, out = after_planning(monkeypatch, break_after_five), tmp_path / "out"
    assert run(server, out) == 2
    sentence = one_sentence(capsys)
    assert says in sentence and server.address in sentence
    assert f"What has arrived is kept (5 images in {out})." in sentence
    assert len(images(out)) == 5 and images(out).items() <= images(faultless).items()
    assert not list(out.rglob("*.part"))


def test_lasting_corruption_names_the_image_and_brings_the_others(server, tmp_path, capsys, faultless, files):
    with zipfile.ZipFile(io.BytesIO(files[TRAINING])) as archive:
        victim = archive.infolist()[3]
    middle, out = victim.header_offset + 2000, tmp_path / "out"
    server.files[TRAINING] = files[TRAINING][:middle] + bytes(50) + files[TRAINING][middle + 50 :]
    assert run(server, out) == 2
    assert f"missing ISIC-2017_Training_Data.zip/{victim.filename} (" in one_sentence(capsys)
    report = pd.read_csv(out / "refused.csv")
    assert len(report) == 1 and report["reason"][0].endswith(", read 3 times")
    assert len(images(out)) == ALL - 1
    server.files[TRAINING] = files[TRAINING]
    assert run(server, out) == 0  # repaired on the server: the report goes
    assert contents(out) == contents(faultless)


def test_bad_members_are_named(server, tmp_path, faultless):
    whole = draw("nevus", 1)
    names = ("valid/melanoma/good.jpg", "valid/nevus/twice.jpg", "valid/nevus/twice.JPG", "../valid/nevus/escape.jpg")
    bad = [("valid/nevus/text.jpg", b"no image"), ("valid/nevus/torn.jpg", whole[:3000])]
    server.files["/valid.zip"] = make_zip([*((name, whole) for name in names), *bad])
    assert run(server, tmp_path / "out", "--source", "udacity") == 2
    report = pd.read_csv(tmp_path / "out" / "refused.csv").set_index("file")["reason"]
    assert report["valid.zip/../valid/nevus/escape.jpg"] == "points outside the folder"
    assert report["valid.zip/valid/nevus/text.jpg"] == "not an image"
    assert "truncated" in report["valid.zip/valid/nevus/torn.jpg"]
    assert report["valid.zip/valid/nevus/twice.JPG"] == "there is another of this name"
    assert not list(tmp_path.rglob("escape*"))
    assert {path.stem for path in (tmp_path / "out" / "valid").rglob("*.jpg")} == {"good", "twice"}


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        (TRUTH, b"<html>404</html>", "GroundTruth.csv, row 1: "),
        (TRUTH, b"image_id,melanoma,seborrheic_keratosis\nISIC_1,1,1", "is both"),
        (TRUTH, b"image_id,melanoma,seborrheic_keratosis\nISIC_0000001,0,0\nISIC_9,0,0", "ISIC_9.jpg (not in the zip)"),
        (TRAINING, b"<html>sign in</html>" * 100, "not a zip"),
        (TRAINING, make_zip([("readme.txt", b"hello")]), "holds none of the images"),
        (TRAINING, make_zip([]), "holds none of the images"),
    ],
)
def test_wrong_files(server, tmp_path, capsys, path, content, says):
    server.files[path] = content
    assert run(server, tmp_path / "out") == 2
    assert says in one_sentence(capsys)


def test_other_ends_in_one_sentence(server, tmp_path, capsys):
    out = tmp_path / "out"
    for address, says in (
        (str(tmp_path / "nowhere"), "No such file"),
        ("http://127.0.0.1:9", "refused"),
        ("http://[::1", "not a web address"),
    ):
        assert fetch.main([str(out), "--address", address, "--retries", "0"]) == 2
        assert says in one_sentence(capsys)
        assert not out.exists()  # an empty folder would be taken for a data folder
    (tmp_path / "file").write_text("")
    assert run(server, tmp_path / "file") == 2
    assert str(tmp_path / "file") in one_sentence(capsys)
    with fetch.writing_into(out):
        assert run(server, out) == 2
    assert "another process is writing into it" in one_sentence(capsys)


def test_killed_at_random_moments(server, tmp_path, faultless):
    """SIGKILL: nothing can be tidied up, and nothing may be lost or left half written."""
    server.faults["zip$"] = "slow", 10**6
    out, chance, fork = tmp_path / "out", random.Random(0), multiprocessing.get_context("fork")
    for _ in range(8):
        process = fork.Process(target=run, args=(server, out, "--connections", "2"))
        process.start()
        time.sleep(chance.uniform(0.05, 0.4))
        process.kill()
        process.join()
        assert images(out).items() <= images(faultless).items()
    assert run(server, out) == 0
    assert contents(out) == contents(faultless)
    assert not list(tmp_path.rglob("*.part"))


NEW = {f"ISIC_1{number}{each:05}" for number in range(3) for each in range(4)}


class Archive:
    """The ISIC Archive's search, as far as derma.fetch uses it: pages with a cursor, and each image's own address."""

    def __init__(self, server):
        self.server, self.records = server, []
        server.files[API] = self.search

    def add(self, name, label, content, **changes):
        self.server.files[f"/full/{name}.jpg"] = content
        second, third = {
            "melanoma": ("Malignant melanocytic proliferations (Melanoma)", "Melanoma Invasive"),
            "nevus": ("Benign melanocytic proliferations", "Nevus"),
            "seborrheic_keratosis": ("Benign epidermal proliferations", "Seborrheic keratosis"),
        }[label]
        full = {"url": f"{self.server.address}/full/{name}.jpg", "size": len(content)}
        record = {"isic_id": name, "copyright_license": "CC-BY", "attribution": "A Hospital", "files": {"full": full}}
        record["metadata"] = {"clinical": {"diagnosis_2": second, "diagnosis_3": third}}
        self.records.append(record | changes)

    def search(self, parts):
        query = parse_qs(parts.query)
        text, start = query["query"][0], int(query.get("cursor", ["0"])[0])
        assert "image_type:dermoscopic" in text
        found = [each for each in self.records if any(v in text for v in each["metadata"]["clinical"].values())]
        following = f"{self.server.address}{API}?{parts.query.split('&cursor')[0]}&cursor={start + 3}"
        page = {"results": found[start : start + 3], "next": following if start + 3 < len(found) else None}
        return json.dumps(page).encode()


@pytest.fixture
def archive(server, faultless, tmp_path, monkeypatch):
    """Four new images of each class, and four that must never be trained on."""
    archive = Archive(server)
    pd.DataFrame({"id": sorted(path.stem for path in faultless.rglob("*.jpg"))}).to_csv(tmp_path / "o.csv", index=False)
    monkeypatch.setattr(fetch, "OFFICIAL", tmp_path / "o.csv")
    for number, label in enumerate(CLASSES):
        for each in range(4):
            archive.add(f"ISIC_1{number}{each:05}", label, draw(label, 77, number, each))
    test, mirrored = next((faultless / "test" / "nevus").iterdir()), io.BytesIO()
    Image.open(test).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored, "JPEG", quality=70)
    archive.add("ISIC_2000000", "nevus", test.read_bytes())
    archive.add("ISIC_2000001", "nevus", mirrored.getvalue())
    archive.add(test.stem, "nevus", draw("nevus", 1))  # its name alone excludes it
    archive.add("ISIC_3000000", "melanoma", draw("melanoma", 3), copyright_license=None)
    return archive


def run_extra(server, out, official, *options):
    return run(server, out, "--extra", "--address", f"{server.address}/api", "--official", str(official), *options)


def names(out):
    return {path.stem for path in out.rglob("*.jpg")}


def test_extra_brings_new_images_with_licences_and_no_official_ones(server, archive, tmp_path, faultless, capsys):
    out = tmp_path / "extra"
    server.faults["/full/ISIC_11"] = "500", 10**6
    assert run_extra(server, out, faultless, "--connections", "1") == 2
    assert "ISIC_11" in one_sentence(capsys)
    arrived = names(out)
    assert {path.parts[-3] for path in out.rglob("*.jpg")} == {".incoming"}  # not yet compared with official images
    server.faults.clear()
    server.requests.clear()
    assert run_extra(server, out, faultless) == 0
    assert len([path for path in server.requests if path.startswith("/full")]) == len(NEW) + 2 - len(arrived)
    assert names(out) == NEW
    metadata = pd.read_csv(out / "metadata.csv").set_index("isic_id")
    assert set(metadata.index) == NEW
    assert set(metadata["licence"]) == {"CC-BY"} and set(metadata["attribution"]) == {"A Hospital"}
    assert metadata.loc["ISIC_1000000", "diagnosis"].endswith("(Melanoma): Melanoma Invasive")
    report = pd.read_csv(out / "refused.csv")
    assert set(report["file"]) == {"ISIC_2000000", "ISIC_2000001"}
    assert report["reason"].str.match(r"shows the photograph of ISIC_\d+ \(test\)").all()
    assert LesionData(faultless, out).counts.loc["extra", "all"] == len(NEW)

    server.requests.clear()  # again: nothing is fetched twice, not even what was refused
    assert run_extra(server, out, faultless) == 0
    assert not [path for path in server.requests if path.startswith("/full")]
    assert names(out) == NEW and len(pd.read_csv(out / "metadata.csv")) == len(NEW)


def test_extra_counts_each_class_and_names_what_it_cannot_have(server, archive, tmp_path, faultless, capsys):
    assert run_extra(server, tmp_path / "extra", faultless, "--dry-run") == 0
    assert ["melanoma", "4"] in [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert not (tmp_path / "extra").exists()
    server.files["/full/ISIC_1000000.jpg"] = b"no image"
    del server.files["/full/ISIC_1000001.jpg"]
    assert run_extra(server, tmp_path / "extra", faultless, "--most", "3") == 2
    assert ") and 1 more, see " in one_sentence(capsys)
    report = (tmp_path / "extra" / "refused.csv").read_text()
    assert "404 Not Found" in report and "not an image" in report
    assert [len(list((tmp_path / "extra" / label).iterdir())) for label in CLASSES] == [1, 3, 3]


@pytest.mark.parametrize("answer", [b"<html>", b'{"detail": "no"}', b'{"results": [{"isic_id": 1}], "next": null}'])
def test_extra_from_something_else(server, archive, tmp_path, faultless, capsys, answer):
    server.files[API] = answer
    assert run_extra(server, tmp_path / "extra", faultless) == 2
    assert "ISIC Archive" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("name", "says"), [("metadata.csv", "not a table"), ("refused.csv", "not a table"), ("train/a.csv", "holds splits")]
)
def test_extra_leaves_other_folders_alone(server, archive, tmp_path, faultless, capsys, name, says):
    file = tmp_path / "extra" / name
    file.parent.mkdir(parents=True)
    file.write_text("isic_id,age\nISIC_1,40\n")
    assert run_extra(server, tmp_path / "extra", faultless) == 2
    assert says in one_sentence(capsys)
    assert list((tmp_path / "extra").rglob("*.*")) == [file]


def test_extra_waits_for_the_whole_official_set(server, archive, tmp_path, faultless, capsys):
    """A duplicate of a missing image would not be noticed."""
    assert run_extra(server, tmp_path / "extra", tmp_path / "nowhere") == 2
    assert "fetch the official images first" in one_sentence(capsys)
    official, out = Path(shutil.copytree(faultless, tmp_path / "official")), tmp_path / "extra"
    copied = next((official / "test" / "nevus").iterdir())
    whole = copied.read_bytes()
    copied.write_bytes(b"x")
    assert run_extra(server, out, official) == 2
    assert f"1 of the official images are missing or unreadable, such as {copied.stem};" in one_sentence(capsys)
    # An image that was compared with another official set is compared again.
    copied.write_bytes(whole)
    (out / "nevus").mkdir(parents=True)
    (out / "nevus" / "ISIC_2000000.jpg").write_bytes(whole)
    assert run_extra(server, out, official) == 0
    assert names(out) == NEW
