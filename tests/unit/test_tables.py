import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derma.scoring import score
from derma.tables import TableError, join, read_table, tables_from_probabilities, write_table

ROWS = ("p1,0.9,0.1", "p2,0.2,0.8", "p3,0.3,0.3", "p4,0.25,0.5")


def write(file, *rows, header="Id,task_1,task_2"):
    file.write_text("\n".join([header, *rows] if header else rows) + "\n", encoding="utf-8")
    return file


def values(file, **options):
    return read_table(file, **options).values.to_numpy().tolist()


EXPECTED = [[0.9, 0.1], [0.2, 0.8], [0.3, 0.3], [0.25, 0.5]]


@pytest.mark.parametrize(
    "header", ["Id,task_1,task_2", "image_id,melanoma,seborrheic_keratosis", "ID,TASK_1,TASK_2", None]
)
@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " ", ", ", "  "])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_layouts(tmp_path, header, separator, ending):
    text = "\n".join([header, *ROWS] if header else ROWS).replace(",", separator).replace("\n", ending)
    (tmp_path / "r.csv").write_bytes(text.encode())
    assert values(tmp_path / "r.csv") == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_encodings(tmp_path, encoding):
    (tmp_path / "r.csv").write_text("Id,task_1,task_2\nä,0.5,0.25\n", encoding=encoding)
    table = read_table(tmp_path / "r.csv").values
    assert table.index.tolist() == ["ä"] and table.to_numpy().tolist() == [[0.5, 0.25]]


def test_a_decimal_comma_as_a_spreadsheet_writes_it(tmp_path):
    file = write(tmp_path / "r.csv", "p1;0,9;0,1", "p2;1;1,5E-05", header="Id;task_1;task_2")
    assert values(file) == [[0.9, 0.1], [1, 1.5e-5]]


def test_separators_at_the_end_of_a_row(tmp_path):
    assert values(write(tmp_path / "r.csv", "p1,0.9,0.1,,", "p2,1,0,")) == [[0.9, 0.1], [1, 0]]


def test_ids_are_file_names_without_ending(tmp_path):
    rows = (
        "data/x/test/nevus/ISIC_0012092.jpg,0,0",
        "C:\\x\\ISIC_1.v2.PNG,0,1",
        '"a, b.jpg",1,0',
        ".jpg,0,0",
        "b.2,0,0",
    )
    table = read_table(write(tmp_path / "r.csv", *rows), truth=True)
    assert table.values.index.tolist() == ["ISIC_0012092", "ISIC_1.v2", "a, b", ".jpg", "b.2"]
    assert table.identifiers[:2] == ["data/x/test/nevus/ISIC_0012092.jpg", "C:\\x\\ISIC_1.v2.PNG"]


def test_blank_lines_do_not_shift_row_numbers(tmp_path):
    refuses(lambda: read_table(write(tmp_path / "r.csv", "p1,0.1,0.5", "", ",,", "p2,0.1,x")), "row 5", "'x'")


def refuses(call, *words):
    with pytest.raises(TableError) as caught:
        call()
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["p1,0.5,0.5", "p2,abc,0.1"], ("row 3", "task_1", "'abc'", "not a finite number")),
        (["p1,0.5,1.5", "p2,0.5,0.5"], ("row 2", "task_2", "'1.5'")),  # a slip, not percent
        (["p1,0.5,2.5", "p2,0.5,3", "p3,0,1"], ("row 2", "task_2", "'2.5'", "1 more row")),  # odds or logits
        (["p1,-0.1,0.5"], ("row 2", "'-0.1'", "probability from 0 to 1")),
        (["p1,0.1,101", "p2,0.5,0.7"], ("row 2", "'101'")),
        (["p1,nan,0.5"], ("row 2", "'nan'")),
        (["p1,,0.5"], ("row 2", "''")),
        (["p1,0.2,0.5", "p2,0_1,0.5"], ("row 3", "'0_1'")),
        (["p1,0.2,0.5", "p2,\u0660.\u0665,0.5"], ("row 3", "task_1")),
        (["p1,inf,0.5"], ("row 2", "'inf'")),
        (["p1,x,0.5", "p2,y,0.5", "p3,z,0.5"], ("row 2", "'x'", "2 more rows")),
        (["p1,0.1,0.5", "p2,0.1,0.5", "x/p1.jpg,0.2,0.5"], ("row 4", "x/p1.jpg", "twice")),
        ([",0.1,0.5"], ("row 2", "Id", "empty")),
        (["p1,0.1", "p2,0.1,0.2"], ("row 2", "three fields")),
        (["p1,0.1,0.2", "p2,0.1,0.2,0.3"], ("row 3", "three fields")),
        ([], ("no rows",)),
    ],
)
def test_bad_rows(tmp_path, rows, words):
    refuses(lambda: read_table(write(tmp_path / "r.csv", *rows)), "r.csv", *words)


def test_bad_files(tmp_path):
    refuses(lambda: read_table(tmp_path / "none.csv"), "none.csv", "no such file")
    refuses(lambda: read_table(tmp_path), str(tmp_path), "cannot be read")
    refuses(
        lambda: read_table(write(tmp_path / "h.csv", "p,1,0", header="Id,mel,sk")), "h.csv, row 1", "header", "Id,mel"
    )
    for name, content in (("empty", b""), ("blank", b" \n\n"), ("bom", b"\xef\xbb\xbf")):
        (tmp_path / name).write_bytes(content)
        refuses(lambda file=tmp_path / name: read_table(file), name, "empty")
    for name, content in (("bytes", bytes(range(256))), ("nul", b"Id,task_1,task_2\na,0\x00,1"), ("odd", b"\xff\xfea")):
        (tmp_path / name).write_bytes(content)
        refuses(lambda file=tmp_path / name: read_table(file), name, "not a text file")
    refuses(lambda: read_table(write(tmp_path / "t.csv", "p1,0.5,0"), truth=True), "t.csv", "row 2", "0 or 1")


def test_hard_labels_are_flagged_and_scored(tmp_path):
    table = read_table(write(tmp_path / "r.csv", "p1,1,0.2", "p2,0,0.7", "p3,1,0.1"))
    assert len(table.warnings) == 1
    assert "category 1 (melanoma)" in table.warnings[0] and "hard labels" in table.warnings[0]


def test_percent_is_flagged_and_divided(tmp_path):
    table = read_table(write(tmp_path / "r.csv", "p1,90,10", "p2,0.5,70", "p3,3,12"))
    assert len(table.warnings) == 2 and all("percent" in warning for warning in table.warnings)
    assert table.values["task_1"].tolist() == [0.9, 0.005, 0.03]
    mixed = read_table(write(tmp_path / "r.csv", "p1,90,0.1", "p2,0.5,0.7", "p3,3,0.2"))  # one column alone
    assert len(mixed.warnings) == 1 and "category 1" in mixed.warnings[0]
    assert mixed.values["task_2"].tolist() == [0.1, 0.7, 0.2]


def test_good_predictions_are_not_flagged(tmp_path):
    assert read_table(write(tmp_path / "r.csv", *ROWS)).warnings == ()


def test_ids_that_do_not_fit(tmp_path):
    truth = read_table(write(tmp_path / "t.csv", "a,1,0", "b,0,1", "c,0,0"), truth=True)
    few = read_table(write(tmp_path / "few.csv", "a,0.1,0.2"))
    refuses(lambda: join(few, truth), "few.csv", "no prediction for 'b' and 1 more", "t.csv")
    many = read_table(write(tmp_path / "many.csv", "a,0.1,0.2", "b,0.1,0.3", "d,0,1", "c,0.1,0.1"))
    refuses(lambda: join(many, truth), "many.csv, row 4", "'d'", "t.csv")


def test_truths_that_cannot_be(tmp_path):
    rows = write(tmp_path / "r.csv", "a,0.1,0.2", "b,0.3,0.4")
    one = read_table(write(tmp_path / "one.csv", "a,0,0", "b,0,1"), truth=True)
    refuses(lambda: join(read_table(rows), one), "one.csv", "only one class", "category 1")
    both = read_table(write(tmp_path / "both.csv", "a,0,0", "b,1,1"), truth=True)
    refuses(lambda: join(read_table(rows), both), "both.csv, row 3", "both melanoma and seborrheic keratosis")


def test_a_table_that_cannot_be_written_leaves_nothing_half_done(tmp_path):
    (tmp_path / "taken").mkdir()
    table = pd.DataFrame({"Id": ["a"], "task_1": [1 / 3], "task_2": [0.0]})
    with pytest.raises(OSError):
        write_table(table, tmp_path / "taken")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]
    write_table(table, tmp_path / "new" / "r.csv", decimals=9)
    assert (tmp_path / "new" / "r.csv").read_text() == "Id,task_1,task_2\na,0.333333333,0.000000000\n"


def test_tables_round_trip(tmp_path):
    ids = ["data/x/test/melanoma/a.jpg", "data/x/test/nevus/b.jpg", "data/x/test/seborrheic_keratosis/c.jpg"]
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    for table, name in zip(
        tables_from_probabilities(ids, np.arange(3), probabilities), ("r.csv", "t.csv"), strict=True
    ):
        write_table(table, tmp_path / name)
    assert (tmp_path / "r.csv").read_text().splitlines()[:2] == ["Id,task_1,task_2", f"{ids[0]},0.700000,0.100000"]
    assert (tmp_path / "t.csv").read_text().splitlines()[3] == f"{ids[2]},0,1"
    shuffled = pd.read_csv(tmp_path / "r.csv").iloc[::-1]
    write_table(shuffled, tmp_path / "r.csv")
    joined = join(read_table(tmp_path / "r.csv"), read_table(tmp_path / "t.csv", truth=True))
    assert score(joined) == (1.0, 1.0, 1.0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r.csv", "t.csv"]


# --- whatever a file holds, it is read or refused with one sentence --------------------------------------------------

FIELDS = st.one_of(
    st.floats().map(str),
    st.sampled_from(
        ["0", "1", "0.5", "", "nan", "1e999", "½", '"', "'", "\0", "0,5", "Id", '"a\nb"', "\u2028", "\x1a", "NA"]
    ),
    st.text(max_size=6),
)
LINES = st.lists(FIELDS, max_size=5).flatmap(
    lambda row: st.sampled_from(list(",;\t| ")).map(lambda mark: mark.join(row))
)
TEXTS = st.tuples(
    st.sampled_from(
        ["", "Id,task_1,task_2\n", "image_id,melanoma,seborrheic_keratosis\r\n", "\ufeffId;task_1;task_2\n"]
    ),
    st.lists(LINES, max_size=6).map("\n".join),
).map("".join)


@settings(max_examples=400, deadline=None)
@given(content=st.one_of(TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=200)))
def test_malformed_files_are_refused_with_one_sentence(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "malformed.csv"
    file.write_bytes(content)
    good = write(tmp_path_factory.getbasetemp() / "good.csv", "a,1,0", "b,0,1", "c,0,0")
    for truth in (False, True):
        try:
            table = read_table(file, truth=truth)
            assert table.values.to_numpy().min() >= 0 and table.values.to_numpy().max() <= 1
            assert table.values.index.is_unique
            tables = (read_table(good), table) if truth else (table, read_table(good, truth=True))
            assert len(join(*tables)) == len(table.values)
        except TableError as error:
            assert len(str(error).splitlines()) == 1 and (str(file) in str(error) or str(good) in str(error))
