"""Clips and splits: what every dataset is built from."""

import dataclasses

import numpy as np
import pytest
import torch

from workbench.config import SAMPLE_RATE
from workbench.data.clips import ClipSet, DataError, Splits, labelled_subset
from workbench.data.labels import Labels


def _clips(names, samples=10):
    """Clips of `samples` each; sample s of clip i is 100 i + s."""
    count = len(names)
    flat = (100 * np.arange(count)[:, None] + np.arange(samples)).astype(np.int16).reshape(-1)
    return ClipSet(
        sources=(flat,),
        source=np.zeros(count, np.int64),
        start=np.arange(count) * samples,
        length=np.full(count, samples),
        labels=Labels.of_lists([[0]] * count, 1),
        names=np.array(names, dtype=str),
    )


def test_a_crop_is_drawn_from_the_whole_clip():
    clips = _clips(["a", "b"])
    waveform, length = clips.read(np.repeat([0, 1], 200), max_samples=4, generator=np.random.default_rng(0))
    begin = waveform[:, 0] - 100 * torch.arange(2).repeat_interleave(200)
    assert set(begin.tolist()) == set(range(7))
    assert torch.equal(waveform, waveform[:, :1] + torch.arange(4))
    assert (length == 4).all()


def test_a_clip_that_is_shorter_than_the_crop_is_left_whole():
    clips = _clips(["a", "b"])
    clips = dataclasses.replace(clips, length=np.array([10, 3]))
    waveform, length = clips.read(np.array([0, 1]), max_samples=6, generator=np.random.default_rng(0))
    assert length.tolist() == [6, 3]
    assert waveform[1].tolist() == [100, 101, 102, 0, 0, 0]


def test_joined_and_taken_clips_keep_their_audio():
    joined = _clips(["a", "b"]) + _clips(["c", "d", "e"], samples=5)
    assert joined.names.tolist() == list("abcde")
    taken = joined.take(np.array([4, 1]))
    assert taken.names.tolist() == ["e", "b"]
    waveform, length = taken.read(np.array([0, 1]))
    assert length.tolist() == [5, 10]
    assert waveform[0].tolist() == [200, 201, 202, 203, 204, 0, 0, 0, 0, 0]
    assert waveform[1].tolist() == list(range(100, 110))
    assert joined.hours == pytest.approx(35 / SAMPLE_RATE / 3600)
    assert joined.unlabelled().labels.matrix().shape == (5, 0)


def _splits(**changes):
    parts = {"pool": "ab", "train": "ab", "validation": "cd", "test": "ef"} | changes
    clips = {name: _clips(list(names)) for name, names in parts.items()}
    return Splits(**clips, classes=("x",), single_label=True, fingerprint="")


def test_the_pool_may_hold_what_is_trained_on():
    _splits(pool="ab", train="bg")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train", "validation"),
        ("train", "test"),
        ("validation", "test"),
        ("pool", "validation"),
        ("pool", "test"),
    ],
)
def test_a_recording_on_two_sides_is_refused_by_name(first, second):
    apart = {"pool": "ab", "train": "gh", "validation": "cd", "test": "ef"}
    shared = apart[first][-1]
    with pytest.raises(DataError, match=f"in both {first} and {second}.* {shared}$"):
        _splits(**apart | {second: "z" + shared})


@pytest.mark.parametrize("name", ["pool", "train", "validation", "test"])
def test_an_empty_split_is_refused_by_name(name):
    with pytest.raises(DataError, match=f"{name} split is empty"):
        _splits(**{name: ""})


def test_a_subset_has_at_least_one_clip():
    clips = _clips(list("abc"))
    assert len(labelled_subset(clips, 0.01, np.random.default_rng(0))) == 1
    assert len(labelled_subset(clips, 1.0, np.random.default_rng(0))) == 3
