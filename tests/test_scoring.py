import numpy as np
import pandas as pd
import pytest

from derma.scoring import (
    ScoringError,
    join,
    mean_auc,
    operating_point,
    read_table,
    score,
    tables_from_probabilities,
    threshold_for_balance,
    write_table,
)


def write(file, *rows, header="Id,task_1,task_2"):
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def auc_by_counting(truth, scores):
    """The area's meaning: how often a positive outranks a negative, ties half (Mann and Whitney, 1947)."""
    positives, negatives = scores[truth == 1], scores[truth == 0]
    wins = (positives[:, None] > negatives).sum() + 0.5 * (positives[:, None] == negatives).sum()
    return wins / (len(positives) * len(negatives))


def test_known_areas_with_ties_and_in_another_order(tmp_path):
    truth = write(tmp_path / "t.csv", "a/b/p1.jpg,1,0", "a/b/p2.jpg,0,1", "a/b/p3.jpg,0,0", "a/b/p4.jpg,1,0")
    # Melanoma: p1 0.9 and p4 0.4 against p2 0.4 and p3 0.1: 3.5 of 4 pairs. Keratosis: p2 0.3 beats one of three.
    predictions = write(tmp_path / "r.csv", "p4.png,0.4,0.5", "x/p2,0.4,0.3", "p3.jpg,0.1,0.2", "data\\p1.jpg,0.9,0.6")
    joined = join(read_table(predictions), read_table(truth, truth=True))
    assert joined.index.tolist() == ["p1", "p2", "p3", "p4"]
    assert score(joined) == pytest.approx((3.5 / 4, 1 / 3, (3.5 / 4 + 1 / 3) / 2), abs=1e-12)


def test_areas_agree_with_counting_pairs_on_random_data():
    rng = np.random.default_rng(0)
    for decimals in (1, 8):  # with many ties and with none
        probabilities = rng.dirichlet((1, 2, 1), 200).round(decimals)
        targets = rng.integers(0, 3, 200)
        results, truth = tables_from_probabilities([f"p{i}" for i in range(200)], targets, probabilities)
        first, second, mean = score(join(results.set_index("Id"), truth.set_index("Id").sample(frac=1, random_state=0)))
        assert first == pytest.approx(auc_by_counting(targets == 0, probabilities[:, 0]), abs=1e-12)
        assert second == pytest.approx(auc_by_counting(targets == 2, probabilities[:, 2]), abs=1e-12)
        assert mean == pytest.approx(mean_auc(targets, probabilities), abs=1e-12)


def test_tables_round_trip(tmp_path):
    ids = ["data/x/test/melanoma/a.jpg", "data/x/test/nevus/b.jpg", "data/x/test/seborrheic_keratosis/c.jpg"]
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    for table, name in zip(
        tables_from_probabilities(ids, np.arange(3), probabilities), ("r.csv", "t.csv"), strict=True
    ):
        write_table(table, tmp_path / name)
    assert (tmp_path / "r.csv").read_text().splitlines()[:2] == ["Id,task_1,task_2", f"{ids[0]},0.700000,0.100000"]
    assert (tmp_path / "t.csv").read_text().splitlines()[3] == f"{ids[2]},0,1"
    joined = join(read_table(tmp_path / "r.csv"), read_table(tmp_path / "t.csv", truth=True))
    assert score(joined) == (1.0, 1.0, 1.0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r.csv", "t.csv"]


def refuses(call, *words):
    with pytest.raises(ScoringError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["p1,0.5,0.5", "p2,abc,0.1"], ("row 3", "task_1", "'abc'", "probability from 0 to 1")),
        (["p1,0.5,1.5"], ("row 2", "task_2", "'1.5'")),
        (["p1,-0.1,0.5"], ("row 2", "'-0.1'")),
        (["p1,nan,0.5"], ("row 2", "'nan'")),
        (["p1,,0.5"], ("row 2", "''")),
        (["p1,inf,0.5"], ("row 2", "'inf'")),
        (["p1,0.1,0.5", "p2,0.1,0.5", "x/p1.jpg,0.2,0.5"], ("row 4", "x/p1.jpg", "twice")),
        ([",0.1,0.5"], ("row 2", "Id", "empty")),
        (["p1,0.1,0.5", "", "p2,0.1,0.2"], ("row 3",)),
        ([], ("no rows",)),
    ],
)
def test_bad_rows(tmp_path, rows, words):
    refuses(lambda: read_table(write(tmp_path / "r.csv", *rows)), "r.csv", *words)


def test_bad_files(tmp_path):
    refuses(lambda: read_table(tmp_path / "none.csv"), "none.csv", "no such file")
    refuses(lambda: read_table(write(tmp_path / "h.csv", "p,1,0", header="Id,melanoma,sk")), "h.csv", "header")
    (tmp_path / "empty.csv").write_text("")
    refuses(lambda: read_table(tmp_path / "empty.csv"), "empty.csv", "empty")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    refuses(lambda: read_table(tmp_path / "binary.csv"), "binary.csv", "not a CSV file")
    refuses(lambda: read_table(write(tmp_path / "t.csv", "p1,0.5,0"), truth=True), "t.csv", "row 2", "0 or 1")
    refuses(lambda: read_table(write(tmp_path / "w.csv", "p1,0.5,0,9,9")), "w.csv")


def frame(**rows):
    return pd.DataFrame.from_dict(rows, orient="index", columns=["task_1", "task_2"], dtype=float).rename_axis("Id")


def test_ids_that_do_not_fit():
    truth = frame(a=(1, 0), b=(0, 1), c=(0, 0))
    refuses(lambda: join(frame(a=(0.1, 0.2), b=(0.1, 0.2)), truth, "mine.csv"), "mine.csv", "no prediction for 'c'")
    extra = frame(a=(0.1, 0.2), b=(0.1, 0.2), c=(0.1, 0.2), d=(0.1, 0.2))
    refuses(lambda: join(extra, truth, "mine.csv"), "mine.csv", "row 5", "'d'")


def test_truth_of_one_class():
    truth = frame(a=(0, 0), b=(0, 1))
    refuses(lambda: join(frame(a=(0.1, 0.2), b=(0.3, 0.4)), truth), "only one class", "category 1")


def test_operating_point():
    point = operating_point(np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.5, 0.3, 0.5, 0.2]), 0.5)
    assert point.matrix.tolist() == [[2, 1], [1, 1]]
    assert (point.sensitivity, point.specificity) == (1 / 2, 2 / 3)
    assert point.balanced_accuracy == pytest.approx(7 / 12)


def test_threshold_is_the_best_of_all():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 100)
    probabilities = np.clip(0.3 * truth + rng.normal(0.4, 0.2, 100), 0, 1)
    best = operating_point(truth, probabilities, threshold_for_balance(truth, probabilities)).balanced_accuracy
    others = [operating_point(truth, probabilities, t).balanced_accuracy for t in np.linspace(0, 1, 1001)]
    assert best >= max(others) - 1e-12
    assert 0 <= threshold_for_balance(truth, np.full(100, 0.5)) <= 1
