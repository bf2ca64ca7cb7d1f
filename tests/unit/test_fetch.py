"""derma.fetch and derma.web against a server on loopback that fails in every way there is."""

import functools
import io
import json
import multiprocessing
import time
import zipfile
from itertools import chain, repeat
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from derma import fetch, web
from derma.dataset import CLASSES, SPLITS, LesionData
from derma.sample import draw_image
from derma.shrink import writing_into
from tests.unit.server import Server

COUNTS = {"train": (2, 4, 2), "valid": (1, 2, 1), "test": (1, 3, 1)}
ALL = sum(map(sum, COUNTS.values()))
PLANNING = 4 * len(SPLITS)  # requests of zips before the first image: size, end, zip64's end, directory
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


def images(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.jpg")}


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


def test_the_folder(faultless, files):
    data = LesionData(faultless)
    assert {split: tuple(data.counts.loc[split, list(CLASSES)]) for split in SPLITS} == COUNTS
    assert {Image.open(path).size for path in data.images["path"]} == {(276, 256)}
    assert (faultless / TRUTH[1:]).read_bytes() == files[TRUTH]
    assert "CC0" in (faultless / "LICENSE.txt").read_text()
    assert "1710.05006" in (faultless / "ATTRIBUTION.txt").read_text()


def test_the_mirror_and_downloaded_zips_give_the_same(server, files, tmp_path, faultless):
    assert run(server, tmp_path / "mirror", "--source", "udacity") == 0
    for name, content in files.items():
        (tmp_path / name[1:]).write_bytes(content)
    assert fetch.main([str(tmp_path / "local"), "--address", str(tmp_path)]) == 0
    assert images(tmp_path / "mirror") == images(tmp_path / "local") == images(faultless)


def test_killed_and_continued(server, tmp_path, faultless, capsys):
    """SIGKILL: nothing can be tidied up, and nothing may be lost, half written or fetched twice."""
    server.faults["zip$"], out = repeat("slow"), tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=run, args=(server, out, "--connections", "1"))
    process.start()
    while len(images(out)) < 3:
        time.sleep(0.01)
    process.kill()
    process.join()
    (out / "half.jpg.part").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    assert run(server, out, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["all", str(ALL), str(len(kept))]
    server.requests.clear()
    assert run(server, out) == 0
    assert images(out) == images(faultless)
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}.items()
    assert sum(server.requests.values()) == len(SPLITS) + PLANNING + ALL - len(kept)
    assert not list(out.rglob("*.part"))


def test_passing_faults_leave_no_trace(server, tmp_path, faultless):
    faults = ["reset", "500", "503", "stall", "shorter"]
    planning = list(chain.from_iterable((fault, None) for fault in faults))
    server.faults["csv$"] = iter(planning[:6])
    server.faults["zip$"] = iter([*planning, *repeat(None, PLANNING - len(faults)), "corrupt", *faults])
    assert run(server, tmp_path / "out") == 0
    assert all(next(left, "none left") == "none left" for left in server.faults.values())
    assert images(tmp_path / "out") == images(faultless)


def test_retry_after_is_waited_for(server, monkeypatch):
    monkeypatch.setattr(web, "LONGEST_PAUSE", 60)
    server.faults["."] = iter(["503"])
    started = time.monotonic()
    assert web.Web().get(server.address + TRUTH) == server.files[TRUTH]
    assert time.monotonic() - started > 1  # the first pause is half a second otherwise


@pytest.mark.parametrize(("fault", "says"), [("500", "tries: 3"), ("stall", "timed out"), ("no ranges", "ranges")])
def test_lasting_faults_end_in_one_sentence_and_keep_what_arrived(server, tmp_path, capsys, faultless, fault, says):
    server.faults["zip$"], out = chain(repeat(None, PLANNING + 5), repeat(fault)), tmp_path / "out"
    assert run(server, out, "--connections", "1") == 2
    sentence = one_sentence(capsys)
    assert says in sentence and server.address in sentence
    assert f"What has arrived is kept (5 images in {out})." in sentence
    assert len(images(out)) == 5 and images(out).items() <= images(faultless).items()


def test_lasting_corruption_names_the_image_and_brings_the_others(server, tmp_path, capsys, faultless, files):
    with zipfile.ZipFile(io.BytesIO(files[TRAINING])) as archive:
        victim = archive.infolist()[3]
    middle, out = victim.header_offset + 2000, tmp_path / "out"
    server.files[TRAINING] = files[TRAINING][:middle] + bytes(50) + files[TRAINING][middle + 50 :]
    assert run(server, out) == 2
    assert f"missing ISIC-2017_Training_Data.zip/{victim.filename} (damaged in the zip" in one_sentence(capsys)
    assert len(pd.read_csv(out / "refused.csv")) == 1 and len(images(out)) == ALL - 1
    server.files[TRAINING] = files[TRAINING]
    assert run(server, out) == 0  # repaired on the server
    assert images(out) == images(faultless) and not (out / "refused.csv").exists()


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        (TRUTH, b"<html>404</html>", "GroundTruth.csv: not a ground truth"),
        (TRUTH, b"image_id,melanoma,seborrheic_keratosis\nISIC_0000001,0,0\nISIC_9,0,0", "ISIC_9.jpg (not in the zip)"),
        (TRUTH, None, "404 Not Found"),
        (TRAINING, b"<html>sign in</html>", "not a zip"),
        (TRAINING, make_zip([]), "holds none of the images"),
    ],
)
def test_wrong_files(server, tmp_path, capsys, path, content, says):
    server.files[path] = content
    assert run(server, tmp_path / "out") == 2
    assert says in one_sentence(capsys)


def test_other_ends_in_one_sentence(server, tmp_path, capsys):
    out = tmp_path / "out"
    for address, says in (("nowhere", "No such file"), ("http://127.0.0.1:9", "refused"), ("http://[::1", "not a web")):
        assert fetch.main([str(out), "--address", address, "--retries", "0"]) == 2
        assert says in one_sentence(capsys)
        assert not out.exists()  # an empty folder would be taken for a data folder
    (tmp_path / "file").write_text("")
    assert run(server, tmp_path / "file") == 2
    assert str(tmp_path / "file") in one_sentence(capsys)
    with writing_into(out):
        assert run(server, out) == 2
    assert "another process is writing into it" in one_sentence(capsys)


NEW = {f"ISIC_1{number}{each:05}" for number in range(3) for each in range(4)}


@pytest.fixture
def archive(server, faultless, tmp_path, monkeypatch):
    """The ISIC Archive's search, in pages: four new images of each class, and four that must never be trained on."""
    records = []

    def add(name, label, content, **changes):
        server.files[f"/full/{name}.jpg"] = content
        diagnosis = ("Malignant melanocytic proliferations (Melanoma)", "Nevus", "Seborrheic keratosis")
        clinical = {f"diagnosis_{3 if label in CLASSES[1:] else 2}": diagnosis[CLASSES.index(label)]}
        full = {"url": f"{server.address}/full/{name}.jpg", "size": len(content)}
        record = {"isic_id": name, "copyright_license": "CC-BY", "attribution": "A Hospital", "files": {"full": full}}
        records.append(record | {"metadata": {"clinical": clinical}} | changes)

    def search(parts):
        query = parse_qs(parts.query)
        text, start = query["query"][0], int(query.get("cursor", ["0"])[0])
        assert "image_type:dermoscopic" in text
        found = [each for each in records if any(value in text for value in each["metadata"]["clinical"].values())]
        following = f"{server.address}{API}?{parts.query.split('&cursor')[0]}&cursor={start + 3}"
        page = {"results": found[start : start + 3], "next": following if start + 3 < len(found) else None}
        return json.dumps(page).encode()

    server.files[API] = search
    pd.DataFrame({"id": sorted(path.stem for path in faultless.rglob("*.jpg"))}).to_csv(tmp_path / "o.csv", index=False)
    monkeypatch.setattr(fetch, "OFFICIAL", tmp_path / "o.csv")
    for number, label in enumerate(CLASSES):
        for each in range(4):
            add(f"ISIC_1{number}{each:05}", label, draw(label, 77, number, each))
    test, mirrored = next((faultless / "test" / "nevus").iterdir()), io.BytesIO()
    Image.open(test).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored, "JPEG", quality=70)
    add("ISIC_2000000", "nevus", test.read_bytes())
    add("ISIC_2000001", "nevus", mirrored.getvalue())
    add(test.stem, "nevus", draw("nevus", 1))  # its name alone excludes it
    add("ISIC_3000000", "melanoma", draw("melanoma", 3), copyright_license=None)


def run_extra(server, out, official, *options):
    return run(server, out, "--extra", "--address", f"{server.address}/api", "--official", str(official), *options)


def test_extra_brings_new_images_with_licences_and_no_official_ones(server, archive, tmp_path, faultless, capsys):
    out = tmp_path / "extra"
    server.faults["/full/ISIC_11"] = repeat("500")
    assert run_extra(server, out, faultless, "--connections", "1") == 2
    assert "ISIC_11" in one_sentence(capsys)
    arrived = len(images(out))
    assert {Path(name).parts[0] for name in images(out)} == {".incoming"}  # not yet compared with official images
    server.faults.clear()
    for expected in (len(NEW) + 2 - arrived, 0):  # the second time nothing is fetched, not even what was refused
        server.requests.clear()
        assert run_extra(server, out, faultless) == 0
        assert len([path for path in server.requests if path.startswith("/full")]) == expected
        assert {Path(name).stem for name in images(out)} == NEW
        metadata, report = pd.read_csv(out / "metadata.csv").set_index("isic_id"), pd.read_csv(out / "refused.csv")
        assert set(metadata.index) == NEW and set(metadata["licence"]) == {"CC-BY"}
        assert metadata.loc["ISIC_1000000", "diagnosis"].endswith("(Melanoma)")
        assert set(report["file"]) == {"ISIC_2000000", "ISIC_2000001"}
        assert report["reason"].str.match(r"shows the photograph of ISIC_\d+ \(test\)").all()
    assert LesionData(faultless, out).counts.loc["extra", "all"] == len(NEW)


def test_extra_counts_each_class_and_names_what_it_cannot_have(server, archive, tmp_path, faultless, capsys):
    out = tmp_path / "extra"
    assert run_extra(server, out, faultless, "--dry-run") == 0
    assert [".incoming/melanoma", "4"] in [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert not out.exists()
    server.files["/full/ISIC_1000000.jpg"] = b"no image"
    del server.files["/full/ISIC_1000001.jpg"]
    assert run_extra(server, out, faultless, "--most", "3") == 2
    assert ") and 1 more, see " in one_sentence(capsys)
    report = (out / "refused.csv").read_text()
    assert "404 Not Found" in report and "not an image" in report
    assert [len(list((out / label).iterdir())) for label in CLASSES] == [1, 3, 3]


def test_extra_refuses_other_folders_archives_and_incomplete_official_images(
    server, archive, tmp_path, faultless, capsys
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metadata.csv").write_text("isic_id,age\nISIC_1,40\n")
    official = tmp_path / "official"
    (official / "train" / "nevus").mkdir(parents=True)
    (official / "train" / "nevus" / "ISIC_0000003.jpg").write_bytes(draw("nevus", 5, 3))
    for out, folder, says in (
        ("mine", faultless, "holds other files"),
        ("official", faultless, "holds other files"),
        ("out", tmp_path / "nowhere", "nowhere"),
        ("out", official, str(official)),
    ):
        assert run_extra(server, tmp_path / out, folder) == 2
        assert says in one_sentence(capsys)
    server.files[API] = b'{"results": [{"isic_id": 1}], "next": null}'
    assert run_extra(server, tmp_path / "out", faultless) == 2
    assert "ISIC Archive" in one_sentence(capsys)
    assert not (tmp_path / "out").exists()
