"""Labels as lists agree with the matrix that they stand for; labelled subsets are nested and stratified."""

import numpy as np
import pytest

from workbench.data.labels import Labels, nested_order


def _skewed_labels(count=1_000, num_classes=10, unlabelled=0):
    """Multi-label, from half of the clips down to one in a hundred."""
    generator = np.random.default_rng(1)
    share = 0.5 * 0.02 ** (np.arange(num_classes) / (num_classes - 1))
    labels = (generator.random((count, num_classes)) < share).astype(np.uint8)
    silent = ~labels.any(axis=1)
    labels[silent, generator.integers(0, num_classes, silent.sum())] = 1
    labels[generator.permutation(count)[:unlabelled]] = 0
    return labels


def _order(labels, generator):
    return np.fromiter(nested_order(Labels.of_matrix(labels), generator), int)


@pytest.fixture
def matrix():
    """Some clips have no class, some classes no clip."""
    matrix = _skewed_labels(count=40, num_classes=7, unlabelled=5)
    matrix[:, 3] = 0
    return matrix


def test_lists_and_matrix_say_the_same(matrix):
    labels = Labels.of_matrix(matrix)
    lists = [np.flatnonzero(row)[::-1].tolist() for row in matrix]
    for same in (labels, Labels.of_lists(lists, 7)):
        assert len(same) == 40
        np.testing.assert_array_equal(same.matrix(), matrix)
        np.testing.assert_array_equal(same.counts(), matrix.sum(axis=1))
        np.testing.assert_array_equal(same.pairs(), np.nonzero(matrix))


@pytest.mark.parametrize(
    "indices",
    [
        np.array([5, 0, 5, 39]),
        np.array([], int),
        slice(7, 30),
        slice(10, 10),
        slice(30, 7),
        slice(None, None, 3),
    ],
    ids=str,
)
def test_what_is_taken_is_what_the_matrix_would_give(matrix, indices):
    """Of some that were taken before, too: their lists do not begin at the first."""
    for begin in (0, 4):
        labels = Labels.of_matrix(np.concatenate([matrix[:begin], matrix])).take(slice(begin, None))
        taken = labels.take(indices)
        np.testing.assert_array_equal(taken.matrix(), matrix[indices])
        np.testing.assert_array_equal(taken.pairs(), np.nonzero(matrix[indices]))
        if not isinstance(indices, slice):
            np.testing.assert_array_equal(labels.matrix(indices), matrix[indices])
        both = taken + labels
        np.testing.assert_array_equal(both.matrix(), np.concatenate([matrix[indices], matrix]))
    assert taken.none().matrix().shape == (len(taken), 0)


def test_a_slice_shares_the_lists(matrix):
    labels = Labels.of_matrix(matrix)
    part = labels.take(slice(5, 20))
    assert np.shares_memory(part.offsets, labels.offsets)
    assert np.shares_memory(part.classes, labels.classes)


def test_sets_of_other_classes_are_not_joined(matrix):
    with pytest.raises(ValueError, match="7 classes and 6"):
        Labels.of_matrix(matrix) + Labels.of_matrix(matrix[:, :6])


def test_nested_order_is_a_permutation_of_its_own_per_seed():
    labels = _skewed_labels()
    order = _order(labels, np.random.default_rng(0))
    assert sorted(order) == list(range(len(labels)))
    np.testing.assert_array_equal(_order(labels, np.random.default_rng(0)), order)
    assert not np.array_equal(_order(labels, np.random.default_rng(1)), order)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_beginning_of_the_nested_order_is_stratified(seed):
    """A class has its share at every length, to 1 % of the clips; by chance it would miss by twice that."""
    labels = _skewed_labels()
    due = np.arange(1, len(labels) + 1)[:, None] * labels.mean(axis=0)

    def missed(order):
        return labels[order].cumsum(axis=0) - due

    ours = missed(_order(labels, np.random.default_rng(seed)))
    chance = missed(np.random.default_rng(seed).permutation(len(labels)))
    assert np.abs(ours).max() <= 10
    assert np.sqrt(np.square(ours).mean()) < 0.5 * np.sqrt(np.square(chance).mean())


def test_a_single_label_beginning_is_stratified_to_the_clip():
    labels = np.eye(10, dtype=np.uint8).repeat(40, axis=0)
    taken = labels[_order(labels, np.random.default_rng(0))].cumsum(axis=0)
    due = np.arange(1, 401)[:, None] / 10
    assert np.abs(taken - due).max() < 1
    assert (taken[39] == 4).all()


def test_clips_without_labels_come_last():
    labels = _skewed_labels(unlabelled=100)
    order = _order(labels, np.random.default_rng(0))
    assert sorted(order) == list(range(len(labels)))
    assert labels[order[:-100]].any(axis=1).all()
    assert not labels[order[-100:]].any()
