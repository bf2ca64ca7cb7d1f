"""derma.fetch and derma.web against a server on loopback that fails in every way there is."""

import functools
import io
import json
import multiprocessing
import shutil
import time
import zipfile
from itertools import chain, count, repeat
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
def draw(label, name):
    file = io.BytesIO()
    draw_image(label, np.random.default_rng(list(name.encode())), (280, 260)).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_zip(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


@functools.cache
def served():
    """What both sources serve: the challenge's zips and ground truths, and the mirror's zips."""
    files, numbers = {}, count(1)
    for split, part in zip(SPLITS, ("Training", "Validation", "Test_v2")):
        rows, challenge, mirror = ["image_id,melanoma,seborrheic_keratosis"], [(f"{part}/", b"")], [(".DS_Store", b"")]
        for label in np.repeat(CLASSES, COUNTS[split]):
            name = f"ISIC_{next(numbers):07}"
            content = draw(label, name)
            challenge += [(f"{part}/{name}.jpg", content), (f"{part}/{name}_superpixels.png", b"mask")]
            mirror.append((f"{split}/{label}/{name}.jpg", content))
            rows.append(f"{name},{float(label == CLASSES[0])},{float(label == CLASSES[2])}")
        files[f"/ISIC-2017_{part}_Data.zip"] = make_zip(challenge)
        files[f"/ISIC-2017_{part}_Part3_GroundTruth.csv"] = "\n".join(rows).encode()
        files[f"/{split}.zip"] = make_zip(mirror)
    return files


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(web, "LONGEST_PAUSE", 0.02)  # seconds
    monkeypatch.setattr(fetch, "Web", lambda connections, timeout, retries: web.Web(connections, timeout / 4, retries))
    with Server(dict(served())) as server:
        yield server


def run(server, out, *options):
    return fetch.main([str(out), "--address", server.address, "--timeout", "1", "--retries", "2", *options])


def fails(capsys, server, out, *options):
    """Run the command, check that it ends in one sentence, and return that."""
    assert run(server, out, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def images(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.jpg")}


@pytest.fixture(scope="module")
def faultless(tmp_path_factory):
    """The folder that a run without faults makes."""
    out = tmp_path_factory.mktemp("faultless") / "isic2017"
    with Server(dict(served())) as server:
        assert run(server, out) == 0
    return out


def test_all_sources_give_the_same_folder(server, tmp_path, faultless):
    data = LesionData(faultless)
    assert {split: tuple(data.counts.loc[split, list(CLASSES)]) for split in SPLITS} == COUNTS
    assert {Image.open(path).size for path in data.images["path"]} == {(276, 256)}
    assert (faultless / TRUTH[1:]).read_bytes() == served()[TRUTH]
    assert "CC0" in (faultless / "LICENSE.txt").read_text()
    assert "1710.05006" in (faultless / "ATTRIBUTION.txt").read_text()
    for name, content in served().items():
        (tmp_path / name[1:]).write_bytes(content)
    assert run(server, tmp_path / "mirror", "--source", "udacity") == 0
    assert run(server, tmp_path / "local", "--address", str(tmp_path)) == 0
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
    kept = len(images(out))
    assert run(server, out, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["all", str(ALL), str(kept)]
    server.requests.clear()
    assert run(server, out) == 0
    assert sum(server.requests.values()) == len(SPLITS) + PLANNING + ALL - kept
    assert images(out) == images(faultless) and not list(out.rglob("*.part"))


def test_passing_faults_leave_no_trace(server, tmp_path, faultless):
    faults = ["reset", "500", "503", "stall", "shorter"]
    planning = [each for fault in faults for each in (fault, None)]
    server.faults["csv$"] = iter(planning[:6])
    server.faults["zip$"] = iter([*planning, *repeat(None, PLANNING - len(faults)), "corrupt", *faults])
    assert run(server, tmp_path / "out") == 0
    assert all(next(left, "none left") == "none left" for left in server.faults.values())
    assert images(tmp_path / "out") == images(faultless)


@pytest.mark.parametrize(("fault", "says"), [("500", "tries: 3"), ("stall", "timed out"), ("no ranges", "ranges")])
def test_lasting_faults_keep_what_arrived(server, capsys, tmp_path, faultless, fault, says):
    server.faults["zip$"], out = chain(repeat(None, PLANNING + 5), repeat(fault)), tmp_path / "out"
    sentence = fails(capsys, server, out, "--connections", "1")
    assert says in sentence and server.address in sentence
    assert f"What has arrived is kept (5 images in {out})." in sentence
    assert len(images(out)) == 5 and images(out).items() <= images(faultless).items()


def test_lasting_corruption_names_the_image_and_brings_the_others(server, capsys, tmp_path):
    content, out = served()[TRAINING], tmp_path / "out"
    server.files[TRAINING] = content[:2000] + bytes(50) + content[2050:]
    assert "missing ISIC-2017_Training_Data.zip/Training/ISIC_0000001.jpg (damaged in the zip" in fails(
        capsys, server, out
    )
    assert len(pd.read_csv(out / "refused.csv")) == 1 and len(images(out)) == ALL - 1
    server.files[TRAINING] = content  # repaired
    assert run(server, out) == 0
    assert len(images(out)) == ALL and not (out / "refused.csv").exists()


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
def test_wrong_files(server, capsys, tmp_path, path, content, says):
    server.files[path] = content
    assert says in fails(capsys, server, tmp_path / "out")


def test_wrong_addresses_and_folders(server, capsys, tmp_path):
    out, file = tmp_path / "out", tmp_path / "file"
    for address, says in (("nowhere", "No such file"), ("http://127.0.0.1:9", "refused"), ("http://[::1", "not a web")):
        assert says in fails(capsys, server, out, "--address", address)
        assert not out.exists()  # an empty folder would be taken for a data folder
    file.write_text("")
    assert str(file) in fails(capsys, server, file)
    with writing_into(out):
        assert "another process is writing into it" in fails(capsys, server, out)


NEW = {f"ISIC_1{number}{each:05}" for number in range(3) for each in range(4)}


@pytest.fixture
def extra(server, faultless, tmp_path, monkeypatch):
    """Serve a search of four new images of each class, and of four that must never be trained on; the options for it."""
    records = []

    def add(name, label, content, licence="CC-BY"):
        full = {"url": f"{server.address}/full/{name}.jpg", "size": len(content)}
        record = {"isic_id": name, "copyright_license": licence, "files": {"full": full}}
        records.append(record | {"metadata": {"clinical": {"diagnosis_1": label, "diagnosis_3": "in situ"}}})
        server.files[f"/full/{name}.jpg"] = content

    def search(parts):
        query = parse_qs(parts.query)
        label = next(label for label in CLASSES if fetch.QUERIES[label] in query["query"][0])
        start, found = int(query.get("start", "0")[0]), [each for each in records if label in str(each)]
        following = f"{server.address}{API}?{parts.query}&start={start + 3}".replace(f"&start={start}&", "&")
        return json.dumps(
            {"results": found[start : start + 3], "next": following if found[start + 3 :] else None}
        ).encode()

    server.files[API] = search
    pd.DataFrame({"id": sorted(Path(name).stem for name in images(faultless))}).to_csv(tmp_path / "o.csv", index=False)
    monkeypatch.setattr(fetch, "OFFICIAL", tmp_path / "o.csv")
    for name in sorted(NEW):
        add(name, CLASSES[int(name[6])], draw(CLASSES[int(name[6])], name))
    test, mirrored = next((faultless / "test" / "nevus").iterdir()), io.BytesIO()
    Image.open(test).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored, "JPEG", quality=70)
    add("ISIC_2000000", "nevus", test.read_bytes())
    add("ISIC_2000001", "nevus", mirrored.getvalue())
    add(test.stem, "nevus", draw("nevus", "another"))  # its name alone excludes it
    add("ISIC_3000000", "melanoma", draw("melanoma", "unlicensed"), licence=None)
    return "--extra", "--address", f"{server.address}/api", "--official", str(faultless)


def test_extra_brings_new_images_with_licences_and_no_official_ones(server, capsys, extra, tmp_path):
    out = tmp_path / "extra"
    server.faults["/full/ISIC_11"] = repeat("500")
    assert "ISIC_11" in fails(capsys, server, out, *extra, "--connections", "1")
    arrived = len(images(out))
    assert {Path(name).parts[0] for name in images(out)} == {".incoming"}  # not yet compared with official images
    server.faults.clear()
    for expected in (len(NEW) + 2 - arrived, 0):  # the second time nothing is fetched, not even what was refused
        server.requests.clear()
        assert run(server, out, *extra) == 0
        assert len([path for path in server.requests if path.startswith("/full")]) == expected
        assert {Path(name).stem for name in images(out)} == NEW
        metadata, report = pd.read_csv(out / "metadata.csv").set_index("isic_id"), pd.read_csv(out / "refused.csv")
        assert set(metadata.index) == NEW and set(metadata["licence"]) == {"CC-BY"}
        assert metadata.loc["ISIC_1000000", "diagnosis"] == "melanoma: in situ"
        assert set(report["file"]) == {"ISIC_2000000", "ISIC_2000001"}
        assert report["reason"].str.match(r"shows the photograph of ISIC_\d+ \(test\)").all()


def test_extra_counts_each_class_and_names_what_it_cannot_have(server, capsys, extra, tmp_path):
    out = tmp_path / "extra"
    assert run(server, out, *extra, "--dry-run") == 0
    assert [".incoming/melanoma", "4"] in [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert not out.exists()
    server.files["/full/ISIC_1000000.jpg"] = b"no image"
    del server.files["/full/ISIC_1000001.jpg"]
    assert ") and 1 more, see " in fails(capsys, server, out, *extra, "--most", "3")
    report = (out / "refused.csv").read_text()
    assert "404 Not Found" in report and "not an image" in report
    assert [len(list((out / label).iterdir())) for label in CLASSES] == [1, 3, 3]


def test_extra_refuses_other_folders_archives_and_incomplete_official_images(
    server, capsys, extra, tmp_path, faultless
):
    official, out = Path(shutil.copytree(faultless, tmp_path / "official")), tmp_path / "out"
    assert "holds other files" in fails(capsys, server, tmp_path, *extra)
    assert "holds other files" in fails(capsys, server, official, *extra)
    next((official / "test" / "nevus").iterdir()).unlink()
    assert "1 of the official images are missing" in fails(capsys, server, out, *extra, "--official", str(official))
    server.files[API] = b'{"results": [{"isic_id": 1}], "next": null}'
    assert "ISIC Archive" in fails(capsys, server, out, *extra)
    assert not out.exists()
