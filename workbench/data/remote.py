"""A prepared set at an fsspec URL, such as `s3://bucket/set`: its index is fetched once, audio when heard.

The index is kept below the data's root, under the hash of the set's header. Of the audio nothing is kept: a
batch is as many ranges of the shards, asked for together.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.clips import DataError, RemoteSamples
from workbench.data.prepared import HEADER, Header, Prepared, is_shard, open_prepared, sha256, shard_name

SAMPLE_BYTES = 2


def is_url(location: str) -> bool:
    return "://" in location


def read_header(url: str) -> Header:
    """Of the set at `url`. Raises DataError."""
    return _read_header(url)[0]


def open_remote(url: str, root: Path) -> Prepared:
    """The set at `url`, its index below `root`, fetched if it is not there. Raises DataError."""
    header, content = _read_header(url)
    folder = root / f"index-{hashlib.sha256(content).hexdigest()[:16]}"
    if not folder.is_dir():
        _fetch_index(url, header, content, folder)
    files, base = _connect(url)
    shards = [RemoteShard(files, f"{base}/{shard_name(number)}", url) for number in range(header.shards)]
    return open_prepared(folder, shards)


class RemoteShard(RemoteSamples):
    """The samples of a file, (S,) int16."""

    def __init__(self, files: Any, path: str, url: str) -> None:
        """`path` is of the fsspec file system `files`; `url` is the set's, for messages."""
        self.files, self.path, self.url = files, path, url

    def fetch(self, parts: Sequence[tuple[RemoteSamples, slice]]) -> list[np.ndarray]:
        own = [(shard, part) for shard, part in parts if isinstance(shard, RemoteShard)]
        assert len(own) == len(parts)
        found: dict[int, np.ndarray] = {}
        for files in {id(shard.files): shard.files for shard, _ in own}.values():
            numbers = [i for i, (shard, _) in enumerate(own) if shard.files is files]
            ranges = [own[i] for i in numbers]
            with _told(ranges[0][0].url):
                contents = files.cat_ranges(
                    [shard.path for shard, _ in ranges],
                    [int(part.start) * SAMPLE_BYTES for _, part in ranges],
                    [int(part.stop) * SAMPLE_BYTES for _, part in ranges],
                )
            for i, (shard, part), content in zip(numbers, ranges, contents, strict=True):
                found[i] = shard._samples(content, int(part.stop - part.start))
        return [found[i] for i in range(len(parts))]

    def _samples(self, content: bytes | Exception, expected: int) -> np.ndarray:
        name = f"{self.url}, {Path(self.path).name}"
        if isinstance(content, FileNotFoundError):
            raise DataError(f"{name}: not there; copy the set there again")
        with _told(name):
            if isinstance(content, Exception):
                raise content
        if len(content) != expected * SAMPLE_BYTES:
            raise DataError(
                f"{name}: gave {len(content)} bytes where {expected * SAMPLE_BYTES} were asked for; it is "
                "not as it was written (copy the set there again), or its server knows no ranges"
            )
        return np.frombuffer(content, "<i2")


def _read_header(url: str) -> tuple[Header, bytes]:
    """And the bytes of its file."""
    files, base = _connect(url)
    try:
        with _told(f"{url}/{HEADER}"):
            content: bytes = files.cat_file(f"{base}/{HEADER}")
    except FileNotFoundError:
        raise DataError(
            f"{url}/{HEADER}: not there; what is at a URL must be a prepared set: make one with python -m "
            "workbench.data prepare, and copy its folder there"
        ) from None
    return Header.parse(content, f"{url}/{HEADER}"), content


def _fetch_index(url: str, header: Header, content: bytes, folder: Path) -> None:
    """All but the audio, aside and then renamed: there whole, or not at all."""
    files, base = _connect(url)
    aside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    aside.mkdir(parents=True)
    try:
        for name, expected in header.sha256.items():
            if is_shard(name):
                continue
            with _told(f"{url}/{name}"):
                files.get_file(f"{base}/{name}", str(aside / name))
            if sha256(aside / name) != expected:
                raise DataError(f"{url}/{name}: not as it was written; copy the set there again")
        (aside / HEADER).write_bytes(content)
        with contextlib.suppress(OSError):  # another process was faster
            aside.rename(folder)
    except FileNotFoundError as error:
        raise DataError(f"{url}: is not whole ({error}); copy the set there again") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _connect(url: str) -> tuple[Any, str]:
    """The file system of `url`, and the path in it."""
    import fsspec  # only who gives a URL needs it

    with _told(url):
        files, base = fsspec.core.url_to_fs(url.rstrip("/"))
    return files, base.rstrip("/")


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Errors of whatever kind a file system has become DataError; that a file is not there stays as it is."""
    try:
        yield
    except (FileNotFoundError, DataError):
        raise
    except Exception as error:
        raise DataError(f"{where}: cannot be read ({type(error).__name__}: {error})") from error
