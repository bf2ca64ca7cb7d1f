import unicodedata
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from derma import dataset, tables
from derma.tables import TableError, join, read_table, truth_from_ids, write_table

HEADER = "Id,task_1,task_2"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Write rows to a file and read it."""
    monkeypatch.chdir(tmp_path)

    def call(*rows, name="r.csv", truth=False):
        Path(name).write_text("\n".join([HEADER, *rows]), encoding="utf-8")
        return read_table(name, truth=truth)

    return call


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " ", ", ", "  "])
def test_layouts(tmp_path, separator):
    for header in (HEADER, "image_id,melanoma,seborrheic_keratosis", "ID,TASK_1,TASK_2", ""):
        for ending in ("\n", "\r\n", "\r"):
            text = f"{header}\np1,0.9,0.1\np2,0.25,0.8".replace(",", separator).replace("\n", ending)
            (tmp_path / "r.csv").write_bytes(text.encode())
            table = read_table(tmp_path / "r.csv")
            assert table.values.to_numpy().tolist() == [[0.9, 0.1], [0.25, 0.8]] and table.warnings == ()


def test_what_spreadsheets_write_and_what_ids_are(tmp_path, read):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "latin-1"):
        (tmp_path / "r.csv").write_text("Id;task_1;task_2\nä;0,5;2,5E-1;;\nb;1;0", encoding=encoding)
        table = read_table(tmp_path / "r.csv").values
        assert table.index.tolist() == ["ä", "b"] and table.to_numpy().tolist() == [[0.5, 0.25], [1, 0]]
    ids = ("data/x/ISIC_1.jpg", "C:\\x\\ISIC_1.v2.PNG", '"a, b.jpg"', ".jpg", "b.2")
    table = read(*(f"{each},0,1" for each in ids), truth=True)
    assert table.values.index.tolist() == ["isic_1", "isic_1.v2", "a, b", ".jpg", "b.2"]


@pytest.mark.parametrize(
    ("rows", "truth", "message"),
    [
        ("p1,0.1,0.5  ,, p2,0.1,x", "", "r.csv, row 5: task_2 'x' is not a finite number; give one from 0 to 1."),
        # One slip is none, but many are logits
        ("p1,-2,0.5 p2,5,1", "", "r.csv, row 2: task_1 '-2' should be a probability from 0 to 1, but these look like"),
        (
            "a,0,1 b,0,1 c,0,1 d,0,1 e,0,1 f,0,1 g,0,1 h,0,1 i,0,1 j,0,1 k,0,1.5",
            "",
            "r.csv, row 12: task_2 '1.5' should be a probability from 0 to 1.",
        ),
        ("p1,nan,1 p2,,1 p3,inf,1", "", "r.csv, row 2: task_1 'nan' is not a finite number; give one from 0 to 1 (2"),
        ("p1,0,1 p2,0_1,1 p3,\u0660.\u0665,1", "", "r.csv, row 3: task_1 '0_1' is not a finite number"),
        ("p1,0,1 x/P1.jpg,1,0", "", "r.csv, row 3: Id 'x/P1.jpg' is a duplicate; keep one row for each image (exten"),
        (",0.1,0.5", "", "r.csv, row 2: Id '' is empty"),
        ('"p 1\u2028\t1,0.1', "", "r.csv, row 3: the row 'p 1 1,0.1' should have three fields."),
        ("p" * 140_000 + ",0,1", "", "r.csv, row 2: cannot be split into fields"),
        ("p1,0,\x1a", "", "r.csv: not a text file"),
        ("", "", f"r.csv: no rows; expected the header {HEADER} or image_id,melanoma,seborrheic_keratosis and a row"),
        ("a,0,1", "a,0.5,0", "t.csv, row 2: task_1 '0.5' should be 0 or 1"),
        ("a,0,1", "a,1,0 b,0,1 c,0,0", "r.csv: no prediction for 'b' and 1 more of the 3 images in t.csv"),
        ("a,0,1 b,0,1", "a,1,0", "r.csv, row 3: Id 'b' is not in t.csv"),
        ("a,0,1 b,0,1", "a,0,1 b,0,1", "t.csv: only one class for category 1 (melanoma); an area under"),
        ("a,0,1 b,0,1", "a,0,0 b,1,1", "t.csv, row 3: Id 'b' is both melanoma and seborrheic keratosis"),
    ],
)
def test_bad_tables_are_refused_with_one_sentence(read, rows, truth, message):
    with pytest.raises(TableError) as caught:
        join(read(*rows.split(" ")), read(*truth.split(" "), name="t.csv", truth=True))
    assert str(caught.value).startswith(message) and len(str(caught.value).splitlines()) == 1


def test_bad_files(read):
    Path("bad").write_text("Id,mel,sk\np,1,0")
    for name, message in (("bad", "the header is 'Id,mel,sk'"), ("none", "no such file"), (".", "cannot be read")):
        with pytest.raises(TableError, match=message):
            read_table(name)


def test_hard_labels_and_percent_are_warned_of(read):
    assert "category 1 (melanoma) have only 2 distinct" in read("p1,1,0.2", "p2,0,0.7", "p3,1,0.1").warnings[0]
    mixed = read("p1,90,0.1", "p2,0.5,0.7", "p3,3,0.2")
    assert len(mixed.warnings) == 1 and "category 1 (melanoma) reach 90: percent" in mixed.warnings[0]
    assert mixed.values.to_numpy().tolist() == [[0.9, 0.1], [0.005, 0.7], [0.03, 0.2]]


def test_the_truth_stands_in_the_ids(read):
    rows = [f"data/x/train/{name}/{name[0]}.jpg,0.5,0.25" for name in dataset.CLASSES]
    assert truth_from_ids(read(*rows)).values.loc[["m", "n", "s"]].to_numpy().tolist() == [[1, 0], [0, 0], [0, 1]]
    with pytest.raises(TableError, match=r"r.csv, row 3: Id 'nevus' has no class folder; give a path"):
        truth_from_ids(read(rows[0].replace("/", "\\"), "nevus,0.5,0.25"))
    with pytest.raises(TableError, match=r"r.csv: no image is in a folder 'nevus'; all three classes"):
        truth_from_ids(read(rows[0], rows[2]))


@pytest.mark.parametrize("header", ["Id,0,1", ",0,1", "Unnamed: 0,0,1", "image_id,1,2", "isic,0,2", "Id,0.0,1.0"])
def test_columns_that_are_numbers_are_a_header(tmp_path, header):
    """Which class is "1"? So this is refused; a headerless row with such values is an image."""
    rows = "\nISIC_0000001,0,1\nISIC_0000002.jpg,1,0"
    for text, message in ((header + rows, f"row 1: the header is '{header}'; it should be Id,task_1"), (rows, None)):
        (tmp_path / "r.csv").write_text(text)
        with pytest.raises(TableError, match=message) if message else nullcontext():
            assert len(read_table(tmp_path / "r.csv", truth=True).values) == 2


@pytest.mark.parametrize("change", [str.lower, str.upper, lambda text: unicodedata.normalize("NFD", text)])
def test_ids_are_joined_in_any_case_and_unicode_form(read, change):
    """Where no Id fits, both sides' first Ids are shown."""
    rows = ["x/Böse_ẞ1.jpg,0,1", "é2.JPG,1,0"]
    truth = read(*rows, name="t.csv", truth=True)
    assert join(read(*map(change, rows)), truth)[["task_1", "task_2"]].to_numpy().tolist() == [[0, 1], [1, 0]]
    with pytest.raises(TableError, match=r"no Id of it is in t.csv: the first are '7' here and 'x/Böse_ẞ1.jpg' there"):
        join(read("7,0,1", "8,1,0"), truth)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_what_is_written_reads_back_as_what_was_computed(tmp_path, kind):
    probabilities = np.random.default_rng(0).dirichlet([0.02, 1, 0.02], 60).astype(kind)  # as small as 1e-40
    targets = np.arange(60) % 3
    results, truth = tables.tables_from_probabilities([f"x/{k}.jpg" for k in range(60)], targets, probabilities)
    write_table(results.sample(frac=1, random_state=0), tmp_path / "r.csv")
    write_table(truth, tmp_path / "t.csv")
    joined = join(read_table(tmp_path / "r.csv"), read_table(tmp_path / "t.csv", truth=True))
    assert np.array_equal(joined[["task_1", "task_2"]], probabilities[:, [0, 2]].astype(float))
    assert np.array_equal(joined[["true_1", "true_2"]], np.eye(3)[targets][:, [0, 2]])
