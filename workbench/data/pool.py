"""Unlabelled audio for pre-training: a folder of any depth, or any prepared set; all of it, or some hours.

N recordings, M clips of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workbench.config import SAMPLE_RATE
from workbench.data.clips import ClipSet, DataError, Extent, Splits
from workbench.data.folder import audio_files
from workbench.data.labels import Labels
from workbench.data.listing import Fault, Listing, Row
from workbench.data.prepared import Header, Prepared
from workbench.data.recordings import (
    Columns,
    Copies,
    Layout,
    Sides,
    chance_of,
    columns_listed,
    columns_of,
    mean_seconds,
)
from workbench.data_config import PoolData

SPLIT = "pool"


class Pool(NamedTuple):
    """What is pre-trained on."""

    clips: ClipSet  # C = 0
    left_out: tuple[str, ...]  # unreadable files, when told to go on without them
    digests: np.ndarray  # (N,) of the recordings that are heard, as in `Splits.judged_by`

    def num_shared(self, splits: Splits) -> int:
        """Recordings that are validation or test clips, to the sample."""
        return int(np.isin(self.digests, splits.judged_by).sum())


def read(root: Path, fault: Fault) -> Listing:
    """Every sound file below `root`."""
    remarks: list[str] = []
    rows = [Row(file, file, SPLIT, ()) for file in audio_files(root, fault, remarks)]
    if not rows:
        raise DataError("\n".join([f"{root}: has no sound files", *remarks]))
    return Listing((), single_label=False, rows=rows, remarks=remarks)


def sides(config: PoolData, clips: Columns) -> Sides:
    """All is to train on, or the splits that are named. Raises DataError where they have no clips."""
    for split in config.splits:
        if split not in clips.splits:
            raise DataError(
                f"{config.root}: has no split {split!r}, which pool.splits names; it has "
                f"{', '.join(clips.splits)} (all of it: --set 'pool={{root: {config.root}}}')"
            )
    heard, none = clips.of(*(config.splits or clips.splits)), np.empty(0, np.int64)
    if not len(heard):
        raise DataError(f"{config.root}: has not one clip in {', '.join(config.splits or clips.splits)}")
    return Sides(train=heard, validation=none, test=none)


class _Pools(Copies):
    def _checked(self, config: Any, header: Header) -> Header:
        """A pool may be of any layout: it is only heard."""
        return header


LAYOUTS = {"pool": Layout("a folder of audio", read, sides)}
_COPIES = _Pools(lambda config: "pool", LAYOUTS, setting="pool")


def fingerprint(config: PoolData) -> str:
    """SHA-256 of all the audio; what of it is used, the config says."""
    return _COPIES.fingerprint(config)


def load(config: PoolData, root: Path, report: Callable[[str], None], fingerprint: str) -> Pool:
    """The clips, prepared once below `root`."""
    prepared = _COPIES.prepared(config, root, report, fingerprint)
    which, clips = _heard(prepared, config)
    return Pool(clips, prepared.left_out(), prepared.digest[np.unique(which)])


def extent(config: PoolData, root: Path, fingerprint: str) -> Extent:
    """How much a trial hears of it; and all that is to be prepared. By headers, where that is everything."""
    prepared = _COPIES.opened(config, root, fingerprint)
    crop = config.clip_seconds
    if prepared is not None:
        clips = _heard(prepared, config)[1]
        return _extent(
            len(clips), clips.hours * 3600 / len(clips), np.minimum(clips.length / SAMPLE_RATE, crop)
        )
    listing = _COPIES.listing(config)
    sides(config, columns_listed(listing))
    seconds = mean_seconds(config, listing)
    each = max(1, int(seconds // crop))
    every = each * len(listing.rows)
    heard = every if config.hours is None else min(every, round(config.hours * 3600 / (seconds / each)) or 1)
    return _extent(heard, seconds / each, np.array([min(seconds / each, crop)]), unprepared=every)


def _extent(clips: int, seconds: float, crops: np.ndarray, unprepared: int = 0) -> Extent:
    return Extent(
        pool_clips=clips,
        pool_lengths=((round(float(crops.mean()), 1), 1.0),),
        validation_clips=0,
        test_clips=0,
        evaluated_seconds=seconds,
        num_classes=0,
        unprepared_clips=unprepared,
        unprepared_bytes=round(unprepared * seconds * SAMPLE_RATE * 2),
    )


def _heard(prepared: Prepared, config: PoolData) -> tuple[np.ndarray, ClipSet]:
    """Of which of the prepared recordings each clip is (M,), and the clips."""
    chosen = sides(config, columns_of(prepared)).train
    recordings = prepared.take(chosen)
    which, begin, length = cut(recordings.length, round(config.clip_seconds * SAMPLE_RATE))
    if config.hours is None:
        heard = np.arange(len(which))
    else:
        heard = first_hours(np.asarray(recordings.names), which, length, config.hours, config.root)
    which = which[heard]
    clips = ClipSet(
        sources=recordings.sources,
        source=recordings.source[which],
        start=recordings.start[which] + begin[heard],
        length=length[heard],
        labels=Labels(np.zeros(len(which) + 1, np.int64), np.empty(0, np.uint16), 0),
        # One for all: the names of millions of clips would take gigabytes, and no split is made of a pool.
        names=np.broadcast_to(np.array(SPLIT), len(which)),
    )
    return chosen[which], clips


def cut(lengths: np.ndarray, crop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recordings of `lengths` (N,) as clips: of which each is (M,), where it begins (M,), its length (M,).

    A recording gives as many clips as crops of `crop` samples fit into it, one at least, and all of it is
    in one of them: they are once to twice as long as a crop, which is then drawn from anywhere in its clip.
    """
    counts = np.maximum(lengths // crop, 1)
    which = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    whole, parts = lengths[which].astype(np.int64), counts[which]
    begin, end = number * whole // parts, (number + 1) * whole // parts
    return which, begin, end - begin


def first_hours(
    names: np.ndarray, which: np.ndarray, length: np.ndarray, hours: float, root: str
) -> np.ndarray:
    """Clips (ascending) of recordings in the order of their names' hashes, until there are so many hours.

    So fewer hours lie within more, whatever the seed. Raises DataError where there are not as many.
    """
    order = np.argsort(chance_of(names, "pool.hours/")[which], kind="stable")
    until = np.cumsum(length[order].astype(np.int64))
    wanted = hours * 3600 * SAMPLE_RATE
    if until[-1] < wanted:
        raise DataError(
            f"{root}: pool.hours asks for {hours:g}, and there are {until[-1] / SAMPLE_RATE / 3600:.4g}; "
            "leave it out to hear all"
        )
    return np.sort(order[: int(np.searchsorted(until, wanted)) + 1])
