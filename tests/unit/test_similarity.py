import numpy as np
import pytest

from derma.similarity import Neighbours, shared_class


def brute_force(vectors, queries):
    centred, wanted = vectors - vectors.mean(0), queries - vectors.mean(0)
    cosines = wanted @ centred.T / np.linalg.norm(wanted, axis=1)[:, None] / np.linalg.norm(centred, axis=1)
    return np.argsort(-cosines, axis=1, kind="stable"), cosines


def test_nearest_is_exact():
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(500, 32)) + 3, rng.normal(size=(7, 32)) + 3
    found, cosines = Neighbours(vectors, range(500)).nearest(queries, 20)
    order, expected = brute_force(vectors, queries)
    assert np.array_equal(found, order[:, :20])
    assert np.allclose(cosines, np.take_along_axis(expected, found, 1), atol=1e-5)


def test_others_are_without_oneself_but_with_ones_twin():
    vectors = np.random.default_rng(1).normal(size=(1500, 8))  # more than one block
    vectors[1400] = vectors[3]
    found, cosines = Neighbours(vectors, range(1500)).nearest_others(5)
    assert found.shape == (1500, 5)
    assert not (found == np.arange(1500)[:, None]).any()
    assert found[3, 0] == 1400 and found[1400, 0] == 3 and cosines[3, 0] == pytest.approx(1)
    order, _ = brute_force(vectors, vectors)
    assert np.array_equal(found[7], [k for k in order[7] if k != 7][:5])


def test_few_vectors_and_equal_ones():
    same = Neighbours(np.eye(3)[[0, 0, 0, 1]], "abcd")
    assert same.nearest(np.eye(3)[:1], 10)[0].tolist() == [[0, 1, 2, 3]]
    assert same.nearest_others(10)[0].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    one = Neighbours(np.ones((1, 3)), "a")
    assert one.nearest(np.ones((1, 3)))[1].tolist() == [[0]]  # no direction, and no error


def test_vectors_that_do_not_fit():
    with pytest.raises(ValueError, match="2 names for vectors of shape"):
        Neighbours(np.ones((3, 2)), "ab")
    with pytest.raises(ValueError, match=r"b: its vector \(row 1\) is not finite"):
        Neighbours(np.array([[1.0], [np.nan]]), "ab")


def test_share_of_neighbours_with_ones_own_class():
    neighbours = np.array([[1, 2], [0, 2], [0, 1], [0, 1]])
    assert shared_class(neighbours, [0, 0, 1, 1]).tolist() == [0.5, 0.5, 0, 0]
