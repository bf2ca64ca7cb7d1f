"""derma.fetch and derma.web against a server on loopback that fails in every way there is."""

import io
import json
import multiprocessing
import re
import shutil
import time
import zipfile
from itertools import chain, repeat
from pathlib import Path
from urllib.parse import parse_qs

import pandas as pd
import pytest
from PIL import Image

from derma import fetch, web
from derma.dataset import CLASSES, SPLITS, LesionData
from derma.sample import draw_sample
from derma.shrink import writing_into
from tests.unit.server import Server

ALL = 42  # images in ``drawn``
PLANNING = 4 * len(SPLITS)  # requests of zips before the first image: size, end, zip64's end, directory
TRAINING, TRUTH = "/ISIC-2017_Training_Data.zip", "/ISIC-2017_Training_Part3_GroundTruth.csv"
API = "/api/images/search/"


def make_zip(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture(scope="module")
def files(drawn):
    """What both sources serve: the challenge's zips and ground truths, and the mirror's zips."""
    served = {}
    for split, part in zip(SPLITS, ("Training", "Validation", "Test_v2")):
        table, challenge, mirror = "image_id,melanoma,seborrheic_keratosis", {f"{part}/": b""}, {".DS_Store": b""}
        for path in sorted((drawn / split).rglob("*.jpg")):
            table += f"\n{path.stem},{path.parent.name == CLASSES[0]:.1f},{path.parent.name == CLASSES[2]:.1f}"
            challenge |= {f"{part}/{path.name}": path.read_bytes(), f"{part}/{path.stem}_superpixels.png": b"mask"}
            mirror[path.relative_to(drawn).as_posix()] = path.read_bytes()
        served[f"/ISIC-2017_{part}_Part3_GroundTruth.csv"] = table.encode()
        served |= {f"/ISIC-2017_{part}_Data.zip": make_zip(challenge), f"/{split}.zip": make_zip(mirror)}
    return served


@pytest.fixture
def server(files, monkeypatch):
    monkeypatch.setattr(web, "LONGEST_PAUSE", 0.02)  # seconds
    monkeypatch.setattr(fetch, "Web", lambda connections: web.Web(connections, 0.25, 2))
    with Server(dict(files)) as server:
        yield server


def run(server, out, *options):
    always = f"--address {server.address} --short-side 40"
    return fetch.main([str(out), *always.split(), *options])


def fails(capsys, server, out, *options):
    """Run the command, check that it ends in one sentence, and return that."""
    assert run(server, out, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def images(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.jpg")}


@pytest.fixture(scope="module")
def faultless(files, tmp_path_factory):
    """The folder that a run without faults makes."""
    out = tmp_path_factory.mktemp("faultless") / "isic2017"
    with Server(dict(files)) as server:
        assert run(server, out) == 0
    return out


def test_all_sources_give_the_same_folder(server, files, tmp_path, drawn, faultless):
    assert LesionData(faultless).counts.equals(LesionData(drawn).counts)
    assert {Image.open(path).size for path in faultless.rglob("*.jpg")} == {(53, 40)}
    assert (faultless / TRUTH[1:]).read_bytes() == files[TRUTH]
    assert (faultless / "LICENSE.txt").exists() and "1710.05006" in (faultless / "ATTRIBUTION.txt").read_text()
    for name, content in files.items():
        (tmp_path / name[1:]).write_bytes(content)
    assert run(server, tmp_path / "mirror", "--source", "udacity") == 0
    assert run(server, tmp_path / "local", "--address", str(tmp_path)) == 0
    assert images(tmp_path / "mirror") == images(tmp_path / "local") == images(faultless)


def test_killed_and_continued(server, tmp_path, faultless, capsys):
    """SIGKILL: nothing can be tidied up, and nothing may be lost, half written or fetched twice."""
    server.faults["zip$"], out = repeat("slow", 30), tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=run, args=(server, out, "--connections", "1"))
    process.start()
    while process.is_alive() and len(images(out)) < 3:
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
    server.faults["zip$"] = iter([*planning, *repeat(None, PLANNING - len(faults)), "corrupt", *planning])
    assert run(server, tmp_path / "out") == 0
    assert all(next(left, "none left") == "none left" for left in server.faults.values())
    assert images(tmp_path / "out") == images(faultless)


@pytest.mark.parametrize(("fault", "says"), [("500", "tries: 3"), ("stall", "timed out"), ("no ranges", "ranges")])
def test_lasting_faults_keep_what_arrived(server, capsys, tmp_path, faultless, fault, says):
    server.faults["zip$"], out = chain(repeat(None, PLANNING + 5), repeat(fault)), tmp_path / "out"
    sentence = fails(capsys, server, out, "--connections", "1")
    assert says in sentence and f"What has arrived is kept (5 images in {out})." in sentence
    assert len(images(out)) == 5 and images(out).items() <= images(faultless).items()


def test_lasting_corruption_names_the_image_and_brings_the_others(server, files, capsys, tmp_path):
    server.files[TRAINING], out = files[TRAINING][:900] + bytes(50) + files[TRAINING][950:], tmp_path / "out"
    assert "missing ISIC-2017_Training_Data.zip/Training/DRAWN_0" in fails(capsys, server, out)
    assert "damaged in the zip" in pd.read_csv(out / "refused.csv")["reason"].item() and len(images(out)) == ALL - 1
    server.files = files  # repaired
    assert run(server, out) == 0 and len(images(out)) == ALL and not (out / "refused.csv").exists()


def test_wrong_files_addresses_and_folders(server, files, capsys, tmp_path):
    out = tmp_path / "out"
    for path, content, says in (
        (TRUTH, b"<html>404</html>", "GroundTruth.csv: not a ground truth"),
        (TRAINING, b"<html>sign in</html>", "not a zip"),
        (TRAINING, make_zip({}), "holds none of the images"),
    ):
        server.files = files | {path: content}
        assert says in fails(capsys, server, out)
    wrong = {"nowhere": "nowhere: neither a folder", "http://127.0.0.1:9": "refused", "http://[::1": "nor a web"}
    for address, says in wrong.items():
        assert says in fails(capsys, server, out, "--address", address)
    assert not out.exists()  # an empty folder would be taken for a data folder
    server.files = files | {TRUTH: files[TRUTH] + b"\nISIC_9,0,0"}
    with writing_into(out):
        assert "another process is writing into it" in fails(capsys, server, out)
    assert "ISIC_9.jpg (not in the zip)" in fails(capsys, server, out)


def test_secrets_of_an_address_are_used_but_never_shown(server, capsys, tmp_path, faultless, monkeypatch):
    server.login, out, host = ("Ursula:k3y/w0rd", "sig=T0%2BKen"), tmp_path / "out", server.address[len("http://") :]
    address = f"http://Ursula:k3y%2Fw0rd@{host}/?sig=T0%2BKen"
    assert run(server, out, "--address", address) == 0 and images(out) == images(faultless)
    shown = capsys.readouterr().out + "".join(path.read_text() for path in out.glob("*.*"))
    assert f"Asking http://{host}\n" in shown and f"from\nhttp://{host}\n" in shown
    wrong = ("ftp://U@h", "//U@h", "U@h", "http://Ursula:k3y/w0rd@h", "http://Ursula:1?k3y@h", "http://U@:x")
    wrong = [each.replace("U@", "Ursula:k3y@") for each in wrong]
    server.faults["zip$"] = chain(["500"], repeat("no ranges"))
    for each in (address, address.replace("Ken", "Kin"), *wrong):
        assert run(server, out, "--address", each) == 2
    monkeypatch.setenv("ALL_PROXY", "gopher://Ursula:k3y@127.0.0.1")
    assert run(server, out) == 2
    for each in (["--addres", address, address], ["--source", address], [address]):
        with pytest.raises(SystemExit):
            fetch.main(each)
    out, error = capsys.readouterr()
    assert error.count("\n") == len(wrong) + 6 and "500 Internal Server Error; trying again." in out
    assert not re.search("Ursula|k3y|w0rd|sig=|Ken|Kin", shown + out + error)


NEW = {f"NEW_2{number}0000{each}" for number in range(3) for each in range(4)}


@pytest.fixture
def extra(server, faultless, tmp_path, monkeypatch):
    """Serve four new images of each class, and four never to be trained on; return the options for fetching them."""
    draw_sample(tmp_path / "new", {"train": (0, 0, 0), "valid": (0, 0, 0), "test": (5, 5, 4)}, (64, 48), 77)
    new = {path.stem.replace("DRAWN", "NEW"): path for path in sorted((tmp_path / "new").rglob("*.jpg"))}
    records, test, mirrored = [], next((faultless / "test/nevus").iterdir()), tmp_path / "new/test/nevus/mirrored.jpg"
    Image.open(test).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored, quality=90)
    new |= {"COPY_1": test, "COPY_2": mirrored, test.stem: new.pop("NEW_2100004")}  # the last has an official name
    for name, path in new.items():
        server.files[f"/full/{name}.jpg"] = path.read_bytes()
        full = {"url": f"{server.address}/full/{name}.jpg", "size": path.stat().st_size}
        clinical = {"diagnosis_1": path.parent.name, "diagnosis_3": "in situ", "lesion_id": "IL_1"}
        record = {"isic_id": name, "files": {"full": full}, "metadata": {"clinical": clinical}}
        records.append(record | {"copyright_license": None if name == "NEW_2000004" else "CC-BY"})

    def search(parts):
        query = parse_qs(parts.query)
        label = next(label for label in CLASSES if fetch.QUERIES[label] in query["query"][0])
        found, start = [each for each in records if label in str(each)], int(query.get("start", ["0"])[-1])
        following = f"{server.address}{API}?{parts.query}&start={start + 3}"
        page = {"results": found[start : start + 3], "next": following if start + 3 < len(found) else None}
        return json.dumps(page).encode()

    server.files[API] = search
    pd.DataFrame({"id": sorted(Path(name).stem for name in images(faultless))}).to_csv(tmp_path / "o.csv", index=False)
    monkeypatch.setattr(fetch, "OFFICIAL", tmp_path / "o.csv")
    return "--extra", "--address", f"{server.address}/api", "--official", str(faultless)


def test_extra_brings_new_images_with_licences_and_no_official_ones(server, capsys, extra, tmp_path):
    out = tmp_path / "extra"
    server.faults["/full/NEW_21"] = repeat("500")
    assert "NEW_21" in fails(capsys, server, out, *extra, "--connections", "1")
    arrived = len(images(out))
    assert {Path(name).parts[0] for name in images(out)} == {".incoming"}  # not yet compared with official images
    server.faults.clear()
    for expected in (len(NEW) + 2 - arrived, 0):  # the second time nothing is fetched, not even what was refused
        server.requests.clear()
        assert run(server, out, *extra) == 0
        assert len([path for path in server.requests if path.startswith("/full")]) == expected
        metadata, report = pd.read_csv(out / "metadata.csv").set_index("isic_id"), pd.read_csv(out / "refused.csv")
        assert {Path(name).stem for name in images(out)} == set(metadata.index) == NEW
        columns = ["licence", "lesion_id", "diagnosis"]
        assert list(metadata.loc["NEW_2000000", columns]) == ["CC-BY", "IL_1", "melanoma: in situ"]
        assert set(report["file"]) == {"COPY_1", "COPY_2"}
        assert report["reason"].str.match(r"shows the photograph of DRAWN_\d+ \(test\)").all()


def test_extra_counts_each_class_and_names_what_is_missing(server, capsys, extra, tmp_path):
    out = tmp_path / "extra"
    assert run(server, out, *extra, "--dry-run") == 0
    assert ["melanoma", "4"] in [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert not out.exists()
    server.files["/full/NEW_2000000.jpg"] = b"no image"
    del server.files["/full/NEW_2000001.jpg"]
    assert ") and 1 more, see " in fails(capsys, server, out, *extra, "--most", "3")
    assert pd.read_csv(out / "refused.csv")["reason"].str.contains("404 Not Found|not an image").sum() == 2
    assert [len(list((out / label).iterdir())) for label in CLASSES] == [1, 3, 3]


def test_extra_skips_and_names_wrong_records(server, extra, tmp_path):
    correct, out = server.files[API], tmp_path / "extra"
    damages = {
        "NEW_2000001": lambda each: each["metadata"].update(clinical=None),
        "NEW_2000002": lambda each: each["metadata"]["clinical"].update(diagnosis_3=5),
        "NEW_2100000": lambda each: each.pop("files"),
        "NEW_2100001": lambda each: each["files"]["full"].update(url="http://[::1"),
        "NEW_2200000": lambda each: each.update(copyright_license=["CC-0"]),
    }

    def damaged(parts):
        page = json.loads(correct(parts))
        for record in page["results"]:
            damages.get(record["isic_id"], dict)(record)
        return json.dumps(page | {"results": [*page["results"], None, {"isic_id": "../x"}]}).encode()

    server.files[API] = damaged
    assert run(server, out, *extra) == 0 and {Path(name).stem for name in images(out)} == NEW - set(damages)
    report = pd.read_csv(out / "refused.csv", keep_default_na=False)
    assert set(report["file"]) == {*damages, "COPY_1", "COPY_2", "None", "../x"}


WRONG = {"results": None, "next": None}, {"results": [], "next": 5}, {"results": [{}], "next": None}, {"detail": 1}, []


@pytest.mark.parametrize("content", WRONG, ids=str)
def test_extra_refuses_what_is_not_the_archive(server, capsys, extra, tmp_path, content):
    server.files[API] = json.dumps(content).encode()
    assert "the ISIC Archive" in fails(capsys, server, tmp_path / "out", *extra) and not (tmp_path / "out").exists()


def test_extra_refuses_wrong_folders(server, capsys, extra, tmp_path, faultless):
    official, out = Path(shutil.copytree(faultless, tmp_path / "official")), tmp_path / "out"
    assert "holds other files" in fails(capsys, server, tmp_path, *extra)
    assert "holds other files" in fails(capsys, server, official, *extra)
    next((official / "test" / "nevus").iterdir()).unlink()
    assert "1 of the official images are missing" in fails(capsys, server, out, *extra, "--official", str(official))
    assert not out.exists()
