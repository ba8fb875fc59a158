"""Datasets of recorded files: a copy in its published layout, or what `prepare` has made of it.

What is particular to one is its `Layout`: how its tables are read, and which clips are trained, validated
and tested on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from workbench.config import SAMPLE_RATE
from workbench.data import corpus, synthesis
from workbench.data.clips import NAMES_AT_ONCE, DataError, Extent, Splits, labelled_subset
from workbench.data.kept import kept
from workbench.data.listing import Fault, Listing, strictly
from workbench.data.prepare import content_hash, fingerprint_of, in_order, listed, prepare, stat_of
from workbench.data.prepared import FAULTS, Header, Prepared, is_prepared, open_prepared
from workbench.data.remote import is_url, open_remote, read_header
from workbench.data_config import PoolData, RecordedData
from workbench.random_streams import numpy_stream


@dataclass(frozen=True)
class Columns:
    """Of N clips, the publisher's splits, and which recordings they are takes of."""

    splits: tuple[str, ...]
    split: np.ndarray  # (N,) which of `splits`
    recording: np.ndarray  # (N,) text
    chances: Callable[[], np.ndarray] | None = None  # `chance_of` each, where that is kept

    def of(self, *splits: str) -> np.ndarray:
        """The clips of these splits, in their order."""
        return np.flatnonzero(np.isin(self.split, [self.splits.index(s) for s in splits if s in self.splits]))

    def chance(self, indices: np.ndarray) -> np.ndarray:
        """`chance_of` the recordings of these clips."""
        return chance_of(self.recording[indices]) if self.chances is None else self.chances()[indices]


@dataclass(frozen=True)
class Sides:
    """Which clips are for what."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def hold_out(clips: Columns, indices: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Those of `indices` to train on, and those held out to validate with, where the publisher names none.

    A recording is held out by a hash of its name: all of its takes together, and the same ones whatever
    else there is.
    """
    is_held = clips.chance(indices) < share
    return indices[~is_held], indices[is_held]


def chance_of(recordings: np.ndarray, draw: str = "") -> np.ndarray:
    """A number in [0, 1) that follows from each recording's name alone, (N,).

    Another `draw` gives independent ones: what is drawn twice by the same would be the same recordings.
    """
    beginnings = b"".join(
        hashlib.sha256(f"{draw}{name}".encode()).digest()[:8]
        for begin in range(0, len(recordings), NAMES_AT_ONCE)
        for name in recordings[begin : begin + NAMES_AT_ONCE].tolist()
    )
    return np.frombuffer(beginnings, ">u8").astype(np.float64) / 2**64


@dataclass(frozen=True)
class Published:
    """How much of a set there is."""

    classes: int
    clips: dict[str, int] = field(default_factory=dict)  # by split, where it is known


@dataclass(frozen=True)
class Layout:
    """A published set."""

    title: str
    read: Callable[[Path, Fault], Listing]  # the copy's root -> what its tables say
    sides: Callable[[Any, Columns], Sides]  # its config, and the clips
    published: Published | None = None  # None for one's own recordings

    def unlike_published(self, header: Header) -> list[str]:
        """Of which of its parts a prepared set has more or less, in words."""
        if self.published is None:
            return []
        parts = [(len(header.classes), self.published.classes, "classes")]
        parts += [
            (header.splits.get(split, 0), clips, f"clips of {split}")
            for split, clips in self.published.clips.items()
        ]
        return [f"{found:,} of {there:,} {what}" for found, there, what in parts if found != there]


class Copies:
    """Copies in a published layout, each prepared below the data's root when it is first loaded."""

    def __init__(
        self, layout_of: Callable[[Any], str], layouts: dict[str, Layout], setting: str = "data"
    ) -> None:
        """`setting` is where a config stands in its trial, for messages."""
        self._layout_of, self._layouts, self._setting = layout_of, layouts, setting

    def fingerprint(self, config: RecordedData | PoolData) -> str:
        """Of the rows and the bytes of their files."""
        if is_url(config.root):
            return self._checked(config, read_header(config.root)).fingerprint
        root = Path(config.root)
        if is_prepared(root):
            return self._checked(config, open_prepared(root).header).fingerprint
        listing = self.listing(config)
        rows = in_order(listing)
        hashes = (_hash_once(root / row.file) for row in rows)
        return fingerprint_of(self._layout_of(config), listing, rows, hashes)

    def listing(self, config: RecordedData | PoolData) -> Listing:
        """What the copy's tables say; anything wrong with them is raised."""
        root = Path(config.root)
        if not root.is_dir():
            raise DataError(
                f"{root}: not there. {self._setting}.root must be a copy of {self.layout(config).title}, or "
                f"a prepared set, is {config.root!r} (seen from {Path.cwd()}); give yours with "
                f"--set {self._setting}.root=FOLDER"
            )
        return self.layout(config).read(root, strictly)

    def opened(self, config: RecordedData | PoolData, root: Path, fingerprint: str) -> Prepared | None:
        """The prepared set; None where the copy is still to be prepared. Raises DataError for another one."""
        if is_url(config.root):
            prepared = open_remote(config.root, root)
        else:
            folder = self._folder(config, root, fingerprint)
            if not is_prepared(folder):
                return None
            prepared = open_prepared(folder)
        found = self._checked(config, prepared.header).fingerprint
        if found != fingerprint:  # on another node, or replaced since: its results would be filed wrongly
            raise DataError(
                f"{config.root}: is not the set that was planned with (fingerprint {found[:12]}, not "
                f"{fingerprint[:12]}); give every machine the same one, and start the command again"
            )
        return prepared

    def prepared(
        self, config: RecordedData | PoolData, root: Path, report: Callable[[str], None], fingerprint: str
    ) -> Prepared:
        """The prepared set, made if it is not there. Raises DataError for files that cannot be used."""
        prepared = self.opened(config, root, fingerprint)
        folder = self._folder(config, root, fingerprint)
        if prepared is None:
            listing = self.listing(config)
            report(f"{config.root}: decoding {len(listing.rows)} recordings to {folder}, once")
            prepare(self._layout_of(config), listing, Path(config.root), folder, expected=fingerprint)
            prepared = self.opened(config, root, fingerprint)
            assert prepared is not None
        if is_url(config.root) or is_prepared(Path(config.root)):
            return prepared  # what it leaves out was told when it was made
        if (faults := prepared.lines(FAULTS)) and not config.skip_unreadable:
            raise DataError(
                f"{config.root}: {len(faults)} files cannot be used\n{listed(faults, folder / FAULTS)}\n"
                f"Mend them, or go on without them with --set {self._setting}.skip_unreadable=true "
                f"(they were decoded once; to try them again as they are, delete {folder})"
            )
        return prepared

    def layout(self, config: RecordedData | PoolData) -> Layout:
        return self._layouts[self._layout_of(config)]

    def _checked(self, config: RecordedData | PoolData, header: Header) -> Header:
        """`header`, if the layout is what the config asks for."""
        expected = self._layout_of(config)
        if header.layout != expected:
            raise DataError(
                f"{config.root}: is a prepared {header.layout}, and {self._setting} asks for {expected}"
            )
        return header

    def _folder(self, config: RecordedData | PoolData, root: Path, fingerprint: str) -> Path:
        """Where the prepared set is, or will be: a copy's, by its fingerprint."""
        if is_prepared(Path(config.root)):
            return Path(config.root)
        return root / f"{self._layout_of(config)}-{fingerprint[:16]}"


class Recordings:
    """The dataset of layouts that share a config."""

    def __init__(self, layout_of: Callable[[Any], str], layouts: dict[str, Layout]) -> None:
        self._copies = Copies(layout_of, layouts)

    def fingerprint(self, config: RecordedData) -> str:
        """Of the recordings, and of the embedded corpus that joins the pool."""
        files = self._copies.fingerprint(config)
        corpus_too = f"+{synthesis.fingerprint(_recipe(config))[:16]}" if config.corpus_clips else ""
        return files + corpus_too

    def load(
        self, config: RecordedData, root: Path, seed: int, report: Callable[[str], None], fingerprint: str
    ) -> Splits:
        prepared = self._copies.prepared(config, root, report, _of_files(fingerprint))
        sides = self._sides(config, _columns(prepared, root))
        train = prepared.take(sides.train)
        pool = train.unlabelled()
        if config.corpus_clips:
            made = corpus.load_parts(_recipe(config), _corpus_parts(config), root, report)[0]
            pool = pool + made.unlabelled()
        return Splits(
            pool=pool,
            train=labelled_subset(train, config.label_fraction, numpy_stream(seed, "labels"), root),
            validation=prepared.take(sides.validation),
            test=prepared.take(sides.test),
            classes=prepared.header.classes,
            single_label=prepared.header.single_label,
            fingerprint=fingerprint,
            left_out=prepared.left_out(),
            judged_by=prepared.digest[np.concatenate([sides.validation, sides.test])],
        )

    def check(self, config: RecordedData, root: Path, report: Callable[[str], None]) -> None:
        """Of the embedded corpus; a prepared set is compared by `python -m workbench.data verify`."""
        if config.corpus_clips:
            corpus.check_parts(_recipe(config), _corpus_parts(config), root, report)

    def extent(self, config: RecordedData, root: Path, fingerprint: str) -> Extent:
        prepared = self._copies.opened(config, root, _of_files(fingerprint))
        if prepared is not None:
            columns, num_classes = _columns(prepared, root), len(prepared.header.classes)
            seconds = prepared.header.samples / prepared.header.num_clips / SAMPLE_RATE
            unprepared = 0
        else:
            listing = self._copies.listing(config)
            columns, num_classes = columns_listed(listing), len(listing.classes)
            seconds = mean_seconds(config, listing)
            unprepared = len(listing.rows)
        sides = self._sides(config, columns)
        seconds = round(seconds, 1)
        unprepared_bytes = round(unprepared * seconds * SAMPLE_RATE * 2)
        lengths = [(min(seconds, config.clip_seconds), float(len(sides.train)))]
        if config.corpus_clips:
            recipe = _recipe(config)
            missing = corpus.num_missing_clips(recipe, _corpus_parts(config), root)
            unprepared += missing
            unprepared_bytes += missing * corpus.clip_bytes(recipe)
            lengths.append((min(config.corpus_clip_seconds, config.clip_seconds), float(config.corpus_clips)))
        pool_clips = len(sides.train) + config.corpus_clips
        return Extent(
            pool_clips=pool_clips,
            pool_lengths=tuple((length, count / pool_clips) for length, count in lengths),
            validation_clips=len(sides.validation),
            test_clips=len(sides.test),
            evaluated_seconds=seconds,
            num_classes=num_classes,
            unprepared_clips=unprepared,
            unprepared_bytes=unprepared_bytes,
        )

    def _sides(self, config: RecordedData, columns: Columns) -> Sides:
        sides = self._copies.layout(config).sides(config, columns)
        if empty := [name for name, clips in vars(sides).items() if not len(clips)]:
            counts = np.bincount(columns.split, minlength=len(columns.splits))
            held = ", ".join(f"{split} ({n})" for split, n in zip(columns.splits, counts, strict=True))
            raise DataError(
                f"{config.root}: these settings of data leave no clip for {' and '.join(empty)}; "
                f"the clips by the publisher's splits: {held}"
            )
        return sides


def _of_files(fingerprint: str) -> str:
    """What of a `Recordings.fingerprint` is that of its copy."""
    return fingerprint.partition("+")[0]


def columns_of(prepared: Prepared) -> Columns:
    return Columns(tuple(prepared.header.splits), prepared.split, prepared.recording)


def _columns(prepared: Prepared, root: Path) -> Columns:
    """Those of `columns_of`; who is held out of them is kept below `root`."""
    names = prepared.recording

    def about() -> list[str]:
        return ["chance", prepared.header.sha256["recording.npy"]]

    return dataclasses.replace(
        columns_of(prepared), chances=lambda: kept(root, about, len(names), lambda: chance_of(names))
    )


def columns_listed(listing: Listing) -> Columns:
    splits = tuple(sorted({row.split for row in listing.rows}))
    split = np.array([splits.index(row.split) for row in listing.rows], np.uint8)
    return Columns(splits, split, np.array([row.recording for row in listing.rows]))


def _hash_once(path: Path) -> str:
    """The studies of a command share their files; one that was changed meanwhile is another file."""
    found = stat_of(path)
    return _hash_of(path, found.st_ctime_ns if found else 0)  # a change of who may read it is one, too


@functools.cache
def _hash_of(path: Path, changed: int) -> str:
    return content_hash(path)


def mean_seconds(config: RecordedData | PoolData, listing: Listing) -> float:
    """Of some recordings, by their headers; those that have none to read are not counted."""
    seconds = []
    for row in listing.rows[:: max(1, len(listing.rows) // 20)]:
        with contextlib.suppress(soundfile.LibsndfileError, TypeError):  # TypeError: a headerless .raw
            seconds.append(soundfile.info(str(Path(config.root) / row.file)).duration)
    return sum(seconds) / len(seconds) if any(seconds) else config.clip_seconds


def _corpus_parts(config: RecordedData) -> dict[str, int]:
    return {"pool": config.corpus_clips}


def _recipe(config: RecordedData) -> synthesis.Recipe:
    return synthesis.Recipe(clip_seconds=config.corpus_clip_seconds)
