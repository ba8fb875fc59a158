"""A copy of a set -> a prepared set: every file decoded once, in parallel, to 16 kHz mono int16.

A shard's samples are there before its part (`part-000000.json`) is, and all parts before the header: a run
that was ended, however, goes on where it stopped. Files that cannot be used are named, and left out.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from workbench.audio.decode import (
    NEEDS_PYAV,
    SOUNDTRACKS,
    UnreadableAudio,
    can_read_soundtracks,
    decode_blocks,
    decoding_version,
)
from workbench.child_processes import spawned_pool
from workbench.config import SAMPLE_RATE
from workbench.data.clips import DataError
from workbench.data.disk import writing
from workbench.data.exclusive import exclusive
from workbench.data.labels import Labels
from workbench.data.listing import Listing, Row, is_inside
from workbench.data.prepared import (
    COLUMNS,
    FAULTS,
    FILES,
    FORMAT,
    REMARKS,
    Header,
    is_of_a_set,
    is_prepared,
    sha256,
    shard_path,
    write_columns,
)
from workbench.settings import digest

CLIPS_PER_SHARD = 256
# Of the copy's files, as they are: what an interruption can lose of long recordings.
BYTES_PER_SHARD = 1 << 28
MUCH_SHORTER = 0.9
LISTED_FAULTS = 20  # of those that an error names
ABSENT = "is not there"

Progress = Callable[[int, int], None]  # clips done, clips in all


def prepare(
    layout: str,
    listing: Listing,
    copy: Path,
    folder: Path,
    *,
    table_faults: Sequence[str] = (),
    workers: int | None = None,
    strict: bool = False,
    expected: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Header:
    """Write the clips of `listing`, whose files lie below `copy`, to `folder`; what is there is kept.

    `table_faults` are what reading the tables found. `workers=None` is one for each CPU core. `expected` is
    the fingerprint that the set must have. Raises DataError where it has another, not one file can be read,
    PyAV would be needed to read some, or with `strict` where any cannot be; OSError for what the disk does.
    """
    with exclusive(folder, wait=True), writing(folder):
        if is_prepared(folder):
            return Header.read(folder)
        for left in folder.glob("*.tmp"):  # of a kill, or a full disk
            if is_of_a_set(left):
                left.unlink()
        rows = in_order(listing)
        _require_decoder(rows, copy)
        jobs = _cut(rows, copy, folder)
        done = 0
        progress(done, len(rows))
        for count in _run(_make_shard, jobs, workers):
            done += count
            progress(done, len(rows))
        header = _finish(layout, listing, rows, jobs, table_faults, strict, expected)
        shards = set(folder.glob("audio-*")) - {folder / name for name in header.sha256}
        for left in filter(is_of_a_set, {*folder.glob("part-*.json"), *shards}):
            left.unlink()
    return header


def listed(faults: Sequence[str], path: Path | None = None) -> str:
    """The first of them, a line each, and how many more there are; `path` is a file that has them all."""
    lines = [f"  {fault}" for fault in sorted(faults)[:LISTED_FAULTS]]
    if len(faults) > LISTED_FAULTS:
        where = f", all of them in {path}" if path else ""
        lines.append(f"  and {len(faults) - LISTED_FAULTS:,} more{where}")
    return "\n".join(lines)


def in_order(listing: Listing) -> list[Row]:
    """Split by split, in each by file: the order of a prepared set."""
    rows = sorted(listing.rows, key=lambda row: row.file)
    rows.sort(key=lambda row: row.split)  # keeps them by file, without a pair of both for each of millions
    return rows


def _require_decoder(rows: Sequence[Row], copy: Path) -> None:
    """A set without its videos must not pass for one with them: they have the same fingerprint."""
    if can_read_soundtracks():
        return
    for row in rows:
        if row.file.lower().endswith(SOUNDTRACKS) and stat_of(copy / row.file):
            raise DataError(f"{copy / row.file}: {NEEDS_PYAV}")


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes; of one that is not there or cannot be read, that."""
    try:
        return sha256(path)
    except OSError:
        return ABSENT


def fingerprint_of(layout: str, listing: Listing, rows: Sequence[Row], hashes: Iterable[str]) -> str:
    """Of the classes, the rows in their order and the bytes of their files; SHA-256 in hexadecimal."""
    total = hashlib.sha256()
    about = [decoding_version(row.file for row in rows), layout, listing.classes, listing.single_label]
    listed = (
        (row.file, row.recording, row.split, row.classes, found)
        for row, found in zip(rows, hashes, strict=True)
    )
    for content in (about, *listed):
        total.update(json.dumps(content, separators=(",", ":")).encode() + b"\n")
    return total.hexdigest()


# --- a shard ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """The clips of a shard."""

    copy: Path
    folder: Path
    number: int
    rows: tuple[Row, ...]

    @property
    def key(self) -> str:
        """Changes when a file does."""
        version = decoding_version(row.file for row in self.rows)
        return digest([version, *(self._stamp(row) for row in self.rows)])

    def _stamp(self, row: Row) -> list[Any]:
        found = stat_of(self.copy / row.file)
        return [*row, found and found.st_size, found and found.st_mtime_ns]


def _cut(rows: Sequence[Row], copy: Path, folder: Path) -> list[_Job]:
    """`rows` shard by shard, by their files alone: so the same command finds what it has made."""
    shards: list[list[Row]] = []
    size = 0
    for row in rows:
        found = stat_of(copy / row.file)
        here = found.st_size if found else 0
        if not shards or len(shards[-1]) == CLIPS_PER_SHARD or size + here > BYTES_PER_SHARD:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += here
    return [_Job(copy, folder, number, tuple(shard)) for number, shard in enumerate(shards)]


def stat_of(path: Path) -> os.stat_result | None:
    """None where there is no file, or none that can be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _run(work: Callable[[_Job], int], jobs: Sequence[_Job], workers: int | None) -> Iterator[int]:
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    if workers <= 1:
        yield from map(work, jobs)
        return
    with spawned_pool(workers, threads=1) as pool:
        try:
            yield from pool.map(work, jobs)
        except BrokenProcessPool:
            waiting = [job.rows for job in jobs if _read_part(job.folder, job.number) is None][:workers]
            listed = "".join(f"\n  {rows[0].file} to {rows[-1].file}" for rows in waiting)
            raise DataError(
                f"{jobs[0].copy}: a process that decodes died, of too little memory or of a file that its "
                f"decoder cannot bear, probably one of these:{listed}\n"
                "The same command goes on where it stopped"
            ) from None


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.json"


def _read_part(folder: Path, number: int) -> dict[str, Any] | None:
    try:
        part: dict[str, Any] = json.loads(_part_path(folder, number).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return part


def _make_shard(job: _Job) -> int:
    """Unless it is there, of the same files; the number of its clips."""
    key = job.key
    shard = shard_path(job.folder, job.number)
    part = _read_part(job.folder, job.number)
    if part is not None and part["key"] == key and shard.is_file() and shard.stat().st_size == part["bytes"]:
        return len(job.rows)
    clips: list[_Decoded] = []
    aside = shard.with_name(f"{shard.name}.{uuid.uuid4().hex}.tmp")
    with aside.open("wb") as out:
        for row in job.rows:
            clips.append(_append(job.copy / row.file, row, out))
        out.flush()
        os.fsync(out.fileno())
    aside.replace(shard)
    part = {"key": key, "bytes": shard.stat().st_size, "sha256": sha256(shard), "clips": clips}
    aside = _part_path(job.folder, job.number).with_suffix(f".{uuid.uuid4().hex}.tmp")
    aside.write_text(json.dumps(part))
    aside.replace(_part_path(job.folder, job.number))
    return len(job.rows)


class _Decoded(NamedTuple):
    """What was found at a row's file."""

    content: str  # the hash of its bytes
    length: int  # samples
    digest: int  # of them
    fault: str  # why there are none, or empty
    remarks: list[str]


def _is_absent(path: Path) -> bool:
    """Not so where nobody may look: that has another cause, which opening it tells."""
    try:
        return not path.is_file()
    except PermissionError:
        return False


def _append(path: Path, row: Row, out: IO[bytes]) -> _Decoded:
    """Decode a row's file, and put its samples behind the others."""
    if not is_inside(row.file) or _is_absent(path):
        return _Decoded(ABSENT, 0, 0, ABSENT, [])
    try:
        file = path.open("rb")
        found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return _Decoded(ABSENT, 0, 0, f"cannot be read ({error.strerror})", [])
    begin, samples = out.tell(), hashlib.sha256()
    remarks: list[str] = []
    try:
        with file:
            file.seek(0)
            before = os.fstat(file.fileno())
            for block in decode_blocks(file, path.suffix, remarks):
                content = block.astype("<i2").tobytes()
                out.write(content)
                samples.update(content)
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise UnreadableAudio("was changed while it was read")
    except UnreadableAudio as error:
        out.seek(begin)
        out.truncate()
        return _Decoded(found, 0, 0, str(error), [])
    digest = int.from_bytes(samples.digest()[:8], "big")
    length = (out.tell() - begin) // 2
    if row.seconds is not None and length < MUCH_SHORTER * row.seconds * SAMPLE_RATE:
        remarks.append(f"has {length / SAMPLE_RATE:.2f} s of the {row.seconds} s that its table lists")
    return _Decoded(found, length, digest, "", remarks)


# --- all of it ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """What the parts say; of each row that is kept its place and its digest, as 28 bytes of plain numbers."""

    faults: list[str]
    remarks: list[str]
    checksums: dict[str, str] = field(default_factory=dict)  # of the shards
    kept: list[Row] = field(default_factory=list)
    shard: array[int] = field(default_factory=lambda: array("I"))
    start: array[int] = field(default_factory=lambda: array("q"))
    length: array[int] = field(default_factory=lambda: array("q"))
    digest: array[int] = field(default_factory=lambda: array("Q"))

    def read(self, jobs: Sequence[_Job]) -> Iterator[str]:
        """The hash of each file's bytes, while all else is taken down."""
        for job in jobs:
            part = _read_part(job.folder, job.number)
            assert part is not None
            self.checksums[shard_path(job.folder, job.number).name] = part["sha256"]
            start = 0
            for row, decoded in zip(job.rows, itertools.starmap(_Decoded, part["clips"]), strict=True):
                self.remarks.extend(f"{row.file}: {remark}" for remark in decoded.remarks)
                if decoded.fault:
                    self.faults.append(f"{row.file}: {decoded.fault}")
                else:
                    self.kept.append(row)
                    self.shard.append(job.number)
                    self.start.append(start)
                    self.length.append(decoded.length)
                    self.digest.append(decoded.digest)
                    start += decoded.length
                yield decoded.content


def _finish(
    layout: str,
    listing: Listing,
    rows: list[Row],
    jobs: list[_Job],
    table_faults: Sequence[str],
    strict: bool,
    expected: str | None,
) -> Header:
    copy, folder = jobs[0].copy, jobs[0].folder
    splits = sorted({row.split for row in rows})
    found = _Found(faults=list(table_faults), remarks=list(listing.remarks))
    fingerprint = fingerprint_of(layout, listing, rows, found.read(jobs))
    kept, faults = found.kept, found.faults
    if not kept:
        raise DataError(
            f"{copy}: not one of its recordings is left: {len(rows):,} files cannot be used\n{listed(faults)}"
        )
    if strict and faults:
        raise DataError(f"{copy}: has {len(faults):,} faults\n{listed(faults)}")
    if expected not in (None, fingerprint):
        raise DataError(
            f"{copy}: files were changed, or could not be read, while they were decoded; the same command "
            "decodes those again"
        )
    length = np.array(found.length, np.int64)
    labels = Labels.of_lists([row.classes for row in kept], len(listing.classes))
    index: dict[str, np.ndarray] = {
        "shard": np.array(found.shard, np.uint32),
        "start": np.array(found.start, np.int64),
        "length": length,
        "split": np.fromiter((splits.index(row.split) for row in kept), np.uint8, len(kept)),
        "recording": np.array([row.recording for row in kept]),
        "digest": np.array(found.digest, np.uint64),
        "offsets": labels.offsets,
        "classes": labels.classes,
    }
    write_columns(folder, index)
    checksums = dict(found.checksums)
    lines = {FILES: [row.file for row in kept], FAULTS: faults, REMARKS: found.remarks}
    for name, content in lines.items():
        with (folder / name).open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in content)
    for name in (*(f"{column}.npy" for column in COLUMNS), *lines):
        checksums[name] = sha256(folder / name)
    header = Header(
        format=FORMAT,
        layout=layout,
        classes=listing.classes,
        single_label=listing.single_label,
        splits={split: sum(row.split == split for row in kept) for split in splits},
        samples=int(length.sum()),
        fingerprint=fingerprint,
        shards=len(jobs),
        sha256=checksums,
    )
    header.write(folder)
    return header
