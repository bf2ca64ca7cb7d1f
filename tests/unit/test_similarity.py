import numpy as np
import pytest

from derma.similarity import Neighbours


def test_nearest_is_exact():
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(1500, 8)) + 3, rng.normal(size=(7, 8)) + 3  # more than one block
    vectors[1400] = vectors[3]
    centred, wanted = vectors - vectors.mean(0), queries - vectors.mean(0)
    expected = wanted @ centred.T / np.linalg.norm(wanted, axis=1)[:, None] / np.linalg.norm(centred, axis=1)
    index = Neighbours(vectors, range(1500))
    found, cosines = index.nearest(queries, 20)
    assert np.array_equal(found, np.argsort(-expected, axis=1, kind="stable")[:, :20])
    assert np.allclose(cosines, np.take_along_axis(expected, found, 1), atol=1e-5)
    others, cosines = index.nearest_others(5)
    assert others.shape == (1500, 5) and not (others == np.arange(1500)[:, None]).any()
    assert others[3, 0] == 1400 and others[1400, 0] == 3 and cosines[3, 0] == pytest.approx(1)
    assert np.array_equal(others[7], index.nearest(vectors[7], 6)[0][0, 1:])


def test_few_equal_and_infinite_vectors():
    same = Neighbours(np.eye(3)[[0, 0, 0, 1]], "abcd")
    assert same.nearest_others(10)[0].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert Neighbours(np.ones((1, 3)), "a").nearest(np.ones((1, 3)))[1].tolist() == [[0]]  # no direction, no error
    with pytest.raises(ValueError, match=r"b: its vector \(row 1\) is not finite"):
        Neighbours(np.array([[1.0], [np.nan]]), "ab")
