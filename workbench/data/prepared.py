"""Recordings as studies read them: 16 kHz mono int16 in shards, with an index; all of it memory-mapped.

    set.json                    what it is: layout, classes, splits, fingerprint, checksums; written last
    audio-000000.int16, ...     the samples of some hundred clips each, one after the other
    shard, start, length.npy    (N,) where each clip lies
    split, recording.npy        (N,) which of the splits, and of which recording it is a take
    digest.npy                  (N,) the same for clips that sound the same
    offsets, classes.npy        the classes of each clip, as in `Labels`
    files.txt                   the file of each clip below the copy that was prepared, a line each
    faults.txt                  what was left out, and why, a line each
    remarks.txt                 what is remarkable about files that are in it, or were passed over

Clips stand in the order of their splits. `prepare` writes this, `open_prepared` reads it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from workbench.config import SAMPLE_RATE
from workbench.data.clips import ClipSet, DataError, Samples
from workbench.data.exclusive import LOCK
from workbench.data.labels import Labels
from workbench.settings import ConfigError, from_dict

FORMAT = 1
HEADER, FILES, FAULTS, REMARKS = "set.json", "files.txt", "faults.txt", "remarks.txt"
CLIP_COLUMNS = ("shard", "start", "length", "split", "recording", "digest")
COLUMNS = (*CLIP_COLUMNS, "offsets", "classes")
# Shards, parts, and what of them or of the header is still written aside.
_IN_THE_MAKING = re.compile(
    r"audio-\d{6,}\.int16(\.[0-9a-f]+\.tmp)?|part-\d{6,}\.([0-9a-f]{32}\.tmp|json)|set\.json\.tmp"
)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What `set.json` says."""

    format: int
    layout: str
    classes: tuple[str, ...]
    single_label: bool
    splits: dict[str, int]  # clips of each, in their order
    samples: int
    fingerprint: str  # of the rows and the bytes of their files, however they are kept here
    shards: int
    sha256: dict[str, str]  # of every other file

    def write(self, folder: Path) -> None:
        """Last, by a rename: a folder without it is not whole."""
        aside = folder / f"{HEADER}.tmp"
        aside.write_text(json.dumps(asdict(self), indent=1) + "\n")
        aside.replace(folder / HEADER)

    @classmethod
    def read(cls, folder: Path) -> Header:
        """Raises DataError where there is none, or of another format."""
        path = folder / HEADER
        try:
            return cls.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise DataError(f"{path}: not there; prepare the set: python -m workbench.data prepare") from None

    @classmethod
    def parse(cls, content: bytes, path: str) -> Header:
        """From the bytes of a file, whose `path` is for messages. Raises DataError."""
        try:
            raw = json.loads(content)
        except ValueError as error:
            raise DataError(f"{path}: is damaged ({error}); prepare the set again") from None
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, dict) else raw
            raise DataError(f"{path}: format must be {FORMAT}, is {found!r}; prepare the set again")
        try:
            header = from_dict(cls, raw)
        except ConfigError as error:
            raise DataError(f"{path}: {error}; prepare the set again") from None
        if any(Path(name).name != name for name in header.sha256):
            raise DataError(f"{path}: names files outside of its folder; it was not made by prepare")
        return header

    @property
    def num_clips(self) -> int:
        return sum(self.splits.values())

    @property
    def hours(self) -> float:
        return self.samples / SAMPLE_RATE / 3600


@dataclass(frozen=True)
class Prepared:
    """An open set of N clips."""

    folder: Path
    header: Header
    split: np.ndarray  # (N,) which of `header.splits`
    recording: np.ndarray  # (N,) text
    digest: np.ndarray  # (N,) of the samples
    clips: ClipSet

    def lines(self, name: str) -> list[str]:
        """Of `FILES`, one for each clip; of `FAULTS`; or of `REMARKS`."""
        return (self.folder / name).read_text(encoding="utf-8").splitlines()

    def left_out(self) -> tuple[str, ...]:
        """What could not be used: its file, or its place in a table."""
        return tuple(line.split(": ", 1)[0] for line in self.lines(FAULTS))

    def take(self, indices: np.ndarray) -> ClipSet:
        """The clips at `indices`; those that follow each other share the index on disk."""
        if len(indices) and np.array_equal(indices, np.arange(indices[0], indices[0] + len(indices))):
            return self.clips.take(slice(int(indices[0]), int(indices[-1]) + 1))
        return self.clips.take(indices)


def is_prepared(folder: Path) -> bool:
    return (folder / HEADER).is_file()


def is_of_a_set(path: Path) -> bool:
    """Whether it is a file of a prepared set, or of one that is being made, by its name."""
    names = {HEADER, FILES, FAULTS, REMARKS, LOCK, *(f"{column}.npy" for column in COLUMNS)}
    return path.name in names or _IN_THE_MAKING.fullmatch(path.name) is not None


def open_prepared(folder: Path, shards: Sequence[Samples] | None = None) -> Prepared:
    """Reads the header; all else is read from disk as it is asked for. Raises DataError.

    `shards` are those of a set whose audio does not lie beside its index.
    """
    header = Header.read(folder)
    if shards is None:
        shards = [Shard(shard_path(folder, number)) for number in range(header.shards)]
    try:
        column = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in COLUMNS
        }
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: its index is damaged ({error}); prepare the set again") from None
    if any(len(column[name]) != header.num_clips for name in CLIP_COLUMNS):
        raise DataError(f"{folder}: its index has not {header.num_clips} clips; prepare the set again")
    clips = ClipSet(
        sources=tuple(shards),
        source=column["shard"],
        start=column["start"],
        length=column["length"],
        labels=Labels(column["offsets"], column["classes"], len(header.classes)),
        names=column["recording"],
    )
    return Prepared(folder, header, column["split"], column["recording"], column["digest"], clips)


def verify(folder: Path) -> list[str]:
    """What of a prepared set is missing or not as it was written, a line each. Raises DataError."""
    found = []
    for name, expected in Header.read(folder).sha256.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: not there")
        elif sha256(path) != expected:
            found.append(f"{path}: not as it was written")
    return found


class Shard:
    """The samples of a file, (S,) int16; it is opened when they are first asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getitem__(self, part: slice) -> np.ndarray:
        found = self._samples[part]
        if len(found) != part.stop - part.start:  # what is not there must not be heard as silence
            raise DataError(f"{self._path}: is cut short; prepare the set again")
        return found

    @functools.cached_property
    def _samples(self) -> np.ndarray:
        try:
            return np.memmap(self._path, "<i2", mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{self._path}: cannot be read ({error}); prepare the set again") from None


def shard_name(number: int) -> str:
    return f"audio-{number:06d}.int16"


def is_shard(name: str) -> bool:
    return name.startswith("audio-")


def shard_path(folder: Path, number: int) -> Path:
    return folder / shard_name(number)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_columns(folder: Path, columns: dict[str, np.ndarray]) -> None:
    """`COLUMNS`, each to its file."""
    assert set(columns) == set(COLUMNS)
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
