"""Two trainings that should give the same: exactly, or but for the order in which numbers are added up."""

import pytest
import torch

# Batch norm takes a bias before it away again, and softmax a bias of all keys: their gradients are rounding
# alone, whose sign Adam follows.
WITHOUT_EFFECT = ("depthwise.bias", "running_mean", "query_key_value.bias")


def assert_identical_weights(first, second):
    """State dictionaries, to the last bit."""
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def assert_same_weights(ours, theirs, tolerance=2e-3):
    """State dictionaries after some updates: rounding grows with each."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        if name.endswith(WITHOUT_EFFECT):
            continue
        torch.testing.assert_close(
            ours[name].float(),
            expected.float(),
            atol=tolerance,
            rtol=tolerance,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def assert_same_history(ours, theirs, tolerance=0.01):
    assert [sorted(row) for row in ours] == [sorted(row) for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
