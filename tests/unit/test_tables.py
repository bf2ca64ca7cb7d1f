import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from derma import tables
from derma.scoring import score
from derma.tables import TableError, join, read_table, tables_from_probabilities, truth_from_ids, write_table

ROWS = ("p1,0.9,0.1", "p2,0.2,0.8", "p3,0.3,0.3")
HEADER = "Id,task_1,task_2"


def write(file, *rows, header=HEADER):
    file.write_text("\n".join([header, *rows] if header else rows) + "\n", encoding="utf-8")
    return file


def refuses(call, *words):
    with pytest.raises(TableError) as caught:
        call()
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("header", [HEADER, "image_id,melanoma,seborrheic_keratosis", "ID,TASK_1,TASK_2", None])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " ", ", ", "  "])
def test_layouts(tmp_path, header, separator):
    for ending in ("\n", "\r\n", "\r"):
        text = "\n".join([header, *ROWS] if header else ROWS).replace(",", separator).replace("\n", ending)
        (tmp_path / "r.csv").write_bytes(text.encode())
        table = read_table(tmp_path / "r.csv")
        assert table.values.to_numpy().tolist() == [[0.9, 0.1], [0.2, 0.8], [0.3, 0.3]] and table.warnings == ()


def test_what_spreadsheets_write(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "latin-1"):
        (tmp_path / "r.csv").write_text("Id;task_1;task_2\nä;0,5;2,5E-1;;\nb;1;0", encoding=encoding)
        table = read_table(tmp_path / "r.csv").values
        assert table.index.tolist() == ["ä", "b"] and table.to_numpy().tolist() == [[0.5, 0.25], [1, 0]]
    rows = ("data/x/test/nevus/ISIC_1.jpg,0,0", "C:\\x\\ISIC_1.v2.PNG,0,1", '"a, b.jpg",1,0', ".jpg,0,0", "b.2,0,0")
    table = read_table(write(tmp_path / "r.csv", *rows), truth=True)
    assert table.values.index.tolist() == ["ISIC_1", "ISIC_1.v2", "a, b", ".jpg", "b.2"]
    assert table.identifiers[:2] == ["data/x/test/nevus/ISIC_1.jpg", "C:\\x\\ISIC_1.v2.PNG"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["p1,0.1,0.5", "", ",,", "p2,0.1,x"], ("row 5", "task_2", "'x'", "not a finite number")),
        (["p1,0.5,1.5", "p2,0.5,0.5"], ("row 2", "task_2", "'1.5'")),  # a slip, not percent
        (["p1,0.5,2.5", "p2,0.5,3", "p3,0,1"], ("row 2", "task_2", "'2.5'", "1 more row")),  # odds or logits
        (["p1,-0.1,0.5"], ("row 2", "'-0.1'", "probability from 0 to 1")),
        (["p1,0.1,101", "p2,0.5,0.7"], ("row 2", "'101'")),
        (["p1,nan,0.5", "p2,,0.5"], ("row 2", "'nan'", "1 more row")),
        (["p1,0.2,0.5", "p2,0_1,0.5", "p3,\u0660.\u0665,0.5"], ("row 3", "'0_1'", "1 more row")),
        (["p1,x,0.5", "p2,y,0.5", "p3,inf,0.5"], ("row 2", "'x'", "2 more rows")),
        (["p1,0.1,0.5", "p2,0.1,0.5", "x/p1.jpg,0.2,0.5"], ("row 4", "x/p1.jpg", "duplicate")),
        ([",0.1,0.5"], ("row 2", "Id", "empty")),
        (["p1,0.1", "p2,0.1,0.2"], ("row 2", "three fields")),
        ([], ("no rows",)),
    ],
)
def test_bad_rows(tmp_path, rows, words):
    refuses(lambda: read_table(write(tmp_path / "r.csv", *rows)), "r.csv", *words)


def test_bad_files(tmp_path):
    refuses(lambda: read_table(tmp_path / "none.csv"), "none.csv", "no such file")
    refuses(lambda: read_table(tmp_path), str(tmp_path), "cannot be read")
    refuses(lambda: read_table(write(tmp_path / "h.csv", "p,1,0", header="Id,mel,sk")), "h.csv, row 1", "Id,mel")
    refuses(lambda: read_table(write(tmp_path / "t.csv", "p1,0.5,0"), truth=True), "t.csv", "row 2", "0 or 1")
    for content, words in ((b" \n\n", "empty"), (bytes(range(256)), "not a text file"), (b"\xff\xfea", "not a text")):
        (tmp_path / "r.csv").write_bytes(content)
        refuses(lambda: read_table(tmp_path / "r.csv"), "r.csv", words)


def test_hard_labels_and_percent_are_warned_of(tmp_path):
    (warning,) = read_table(write(tmp_path / "r.csv", "p1,1,0.2", "p2,0,0.7", "p3,1,0.1")).warnings
    assert "category 1 (melanoma)" in warning and "hard labels" in warning
    mixed = read_table(write(tmp_path / "r.csv", "p1,90,0.1", "p2,0.5,0.7", "p3,3,0.2"))  # one column alone
    assert len(mixed.warnings) == 1 and "category 1 (melanoma) reach 90: percent" in mixed.warnings[0]
    assert mixed.values.to_numpy().tolist() == [[0.9, 0.1], [0.005, 0.7], [0.03, 0.2]]


def test_tables_that_do_not_fit(tmp_path):
    truth = read_table(write(tmp_path / "t.csv", "a,1,0", "b,0,1", "c,0,0"), truth=True)
    few = read_table(write(tmp_path / "few.csv", "a,0.1,0.2"))
    refuses(lambda: join(few, truth), "few.csv", "no prediction for 'b' and 1 more", "t.csv")
    many = read_table(write(tmp_path / "many.csv", "a,0.1,0.2", "b,0.1,0.3", "d,0,1", "c,0.1,0.1"))
    refuses(lambda: join(many, truth), "many.csv, row 4", "'d'", "t.csv")
    two = read_table(write(tmp_path / "r.csv", "a,0.1,0.2", "b,0.3,0.4"))
    one = read_table(write(tmp_path / "one.csv", "a,0,0", "b,0,1"), truth=True)
    refuses(lambda: join(two, one), "one.csv", "only one class", "category 1")
    both = read_table(write(tmp_path / "both.csv", "a,0,0", "b,1,1"), truth=True)
    refuses(lambda: join(two, both), "both.csv, row 3", "both melanoma and seborrheic keratosis")


def test_the_truth_stands_in_the_ids(tmp_path):
    """docs/held_out.csv gives the out-of-fold AUCs of the published run, as in docs/experiments.csv."""
    assert tables.CLASS_FOLDERS == pytest.importorskip("derma.dataset").CLASSES
    held_out = read_table(ROOT / "docs" / "held_out.csv")
    rows = pd.read_csv(ROOT / "docs" / "experiments.csv")
    published = rows.loc[rows["cv_auc_3"].idxmax(), ["cv_auc_1", "cv_auc_2", "cv_auc_3"]]
    assert score(join(held_out, truth_from_ids(held_out))) == pytest.approx(published.tolist(), abs=6e-5)
    assert len(held_out.values) == 2125 and round(published["cv_auc_3"], 3) == 0.893
    file = write(tmp_path / "h.csv", "data\\x\\train\\melanoma\\a.jpg,0.5,0.25", "nevus,0.5,0.25")
    refuses(lambda: truth_from_ids(read_table(file)), "h.csv, row 3", "'nevus'", "no class folder")


def test_what_is_written_reads_back_as_what_was_computed(tmp_path):
    ids, targets = [f"data/x/test/nevus/{number}.jpg" for number in range(60)], np.arange(60) % 3
    probabilities = np.random.default_rng(0).dirichlet([0.02, 1, 0.02], 60)
    probabilities[:3, 0] = 3e-17, 2e-17, 1e-17
    for numbers in (probabilities, probabilities.astype(np.float32)):
        for table, name in zip(tables_from_probabilities(ids, targets, numbers), ("r.csv", "t.csv"), strict=True):
            write_table(table.sample(frac=1, random_state=len(name)), tmp_path / "new" / name)
        joined = join(read_table(tmp_path / "new" / "r.csv"), read_table(tmp_path / "new" / "t.csv", truth=True))
        joined = joined.loc[[str(number) for number in range(60)]]
        assert (joined[["task_1", "task_2"]] == numbers[:, [0, 2]].astype(float)).all(axis=None)
        assert (joined["true_1"] == (targets == 0)).all() and (joined["true_2"] == (targets == 2)).all()


FIELDS = st.one_of(
    st.floats().map(str),
    st.sampled_from(["0", "1", "0.5", "", "nan", "1e999", "½", '"', "\0", "0,5", "Id", '"a\nb"', "\u2028", "\x1a"]),
    st.text(max_size=6),
)
LINES = st.lists(FIELDS, max_size=5).flatmap(lambda row: st.sampled_from(",;\t| ").map(lambda mark: mark.join(row)))
TEXTS = st.lists(LINES, max_size=6).map("\n".join)


@settings(max_examples=200, deadline=None)
@given(
    header=st.sampled_from(["", HEADER + "\n", "\ufeffId;task_1;task_2\r\n"]), text=TEXTS, raw=st.binary(max_size=50)
)
def test_any_file_is_read_or_refused_with_one_sentence(tmp_path_factory, header, text, raw):
    file = tmp_path_factory.getbasetemp() / "malformed.csv"
    for content, truth in (
        (raw, False),
        *(((header + text).encode("utf-8", "surrogatepass"), k) for k in (False, True)),
    ):
        file.write_bytes(content)
        try:
            table = read_table(file, truth=truth)
            assert table.values.to_numpy().min() >= 0 and table.values.to_numpy().max() <= 1
            assert table.values.index.is_unique
        except TableError as error:
            assert len(str(error).splitlines()) == 1 and str(file) in str(error)
