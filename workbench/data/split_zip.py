"""Archives in several files, read as one: NAME.zip.001, ... cut anywhere, and NAME.z01, ..., NAME.zip.

The second kind is ZIP's own. Its directory says where a member begins by part and place in the part, which
the standard library does not read. Here the parts are joined without copying them, and a directory with
places in the whole is put behind them, in memory: what is opened is an ordinary archive.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from workbench.data.clips import DataError

# The records of a ZIP directory (PKWARE's APPNOTE, 4.3.12 to 4.3.16), without their signatures.
ENTRY = struct.Struct("<4s6H3I5H2I")  # one member's, before its name, extra fields and comment
END = struct.Struct("<4s4H2IH")  # of the directory
END64 = struct.Struct("<4sQ2H2I4Q")  # the same in 64 bits
LOCATOR = struct.Struct("<4sIQI")  # where END64 is

ENTRY_MARK, END_MARK, END64_MARK, LOCATOR_MARK = b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"
EXTRA64 = 1  # the extra field that holds what does not fit into 32 bits
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the extra field"
LONGEST_COMMENT = 0xFFFF


class Joined(io.RawIOBase):
    """Files one behind the other, as one that can be read and sought in."""

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        self._files = files
        sizes = [file.seek(0, io.SEEK_END) for file in files]
        self.starts = list(itertools.accumulate(sizes, initial=0))  # and the end of the last
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.starts[-1]}[whence]
        if base + offset < 0:
            raise OSError("cannot seek to before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # collections.abc.Buffer is of 3.12
        """As much as the file at this position has."""
        if self._position >= self.starts[-1]:
            return 0
        number = bisect.bisect_right(self.starts, self._position) - 1
        left = self.starts[number + 1] - self._position
        self._files[number].seek(self._position - self.starts[number])
        content = self._files[number].read(min(len(buffer), left))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


@contextlib.contextmanager
def open_parts(parts: Sequence[Path]) -> Iterator[BinaryIO]:
    """The archive whose parts these are, in their order. Raises DataError when some are missing."""
    with contextlib.ExitStack() as stack:
        files: list[BinaryIO] = [stack.enter_context(part.open("rb")) for part in parts]
        if re.fullmatch(r"\.z\d+", parts[0].suffix.lower()):
            files.append(io.BytesIO(_directory_of_the_whole(parts, Joined(files))))
        yield files[0] if len(files) == 1 else io.BufferedReader(Joined(files), 1 << 18)


@dataclass(frozen=True)
class _Directory:
    """Where the directory of a split archive is."""

    start: int  # in the whole
    size: int
    entries: int


def _directory_of_the_whole(parts: Sequence[Path], joined: Joined) -> bytes:
    """The directory of the split archive, with its members' places in the whole."""
    try:
        directory = _find_directory(parts, joined)
        old = _read(joined, directory.start, directory.size)
        entries, at = [], 0
        for _ in range(directory.entries):
            entry, at = _moved(old, at, joined.starts)
            entries.append(entry)
    except (struct.error, IndexError):
        raise DataError(f"{parts[-1]}: its directory is damaged") from None
    new, start = b"".join(entries), joined.starts[-1]
    count = len(entries)
    return b"".join(
        [
            new,
            END64.pack(END64_MARK, END64.size - 12, 45, 45, 0, 0, count, count, len(new), start),
            LOCATOR.pack(LOCATOR_MARK, 0, start + len(new), 1),
            END.pack(END_MARK, 0, 0, FULL16, FULL16, FULL32, FULL32, 0),
        ]
    )


def _find_directory(parts: Sequence[Path], joined: Joined) -> _Directory:
    length = joined.starts[-1]
    tail_start = max(0, length - END.size - LONGEST_COMMENT)
    tail = _read(joined, tail_start, length - tail_start)
    at = tail.rfind(END_MARK)
    if at < 0:
        raise DataError(f"{parts[-1]}: has no directory at its end; it is not the last part, or cut short")
    _, disk, start_disk, _, count, size, start, _ = END.unpack_from(tail, at)
    if FULL16 in (disk, start_disk, count) or FULL32 in (size, start):
        locator = tail[at - LOCATOR.size : at]
        if at < LOCATOR.size or not locator.startswith(LOCATOR_MARK):
            raise DataError(f"{parts[-1]}: its directory is damaged")
        _, end_disk, end_start, num_disks = LOCATOR.unpack(locator)
        _check_parts(parts, num_disks)
        end = _read(joined, joined.starts[end_disk] + end_start, END64.size)
        _, _, _, _, disk, start_disk, _, count, size, start = END64.unpack(end)
    _check_parts(parts, disk + 1)
    return _Directory(joined.starts[start_disk] + start, size, count)


def _check_parts(parts: Sequence[Path], needed: int) -> None:
    if needed != len(parts):
        raise DataError(
            f"{parts[-1]}: is the last of {needed} parts, and {len(parts)} are there "
            f"({', '.join(part.name for part in parts)})"
        )


def _moved(directory: bytes, at: int, starts: Sequence[int]) -> tuple[bytes, int]:
    """The entry at `at`, with its place in the whole, and where the next begins."""
    fields = list(ENTRY.unpack_from(directory, at))
    if fields[0] != ENTRY_MARK:
        raise struct.error
    packed, size, name_length, extra_length, comment_length, disk = fields[8:14]
    offset = fields[16]
    name_at = at + ENTRY.size
    extra_at = name_at + name_length
    comment_at = extra_at + extra_length
    extra, wide = _without_wide(directory[extra_at:comment_at])
    size, packed, offset = (
        wide_value if value == FULL32 else value
        for value, wide_value in _wide_values(wide, (size, packed, offset))
    )
    if disk == FULL16:
        (disk,) = struct.unpack("<I", wide[-4:])
    new_extra = struct.pack("<2H3Q", EXTRA64, 24, size, packed, starts[disk] + offset) + extra
    fields[8], fields[9], fields[11], fields[13], fields[16] = FULL32, FULL32, len(new_extra), 0, FULL32
    end = comment_at + comment_length
    parts = (ENTRY.pack(*fields), directory[name_at:extra_at], new_extra, directory[comment_at:end])
    return b"".join(parts), end


def _without_wide(extra: bytes) -> tuple[bytes, bytes]:
    """The extra fields but that of 64 bits, and its content."""
    kept, wide, at = b"", b"", 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        field = extra[at : at + 4 + length]
        if kind == EXTRA64:
            wide = field[4:]
        else:
            kept += field
        at += 4 + length
    return kept, wide


def _wide_values(wide: bytes, values: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each value with its 64 bits: the field holds those alone that do not fit, in this order."""
    at = 0
    for value in values:
        if value == FULL32:
            yield value, struct.unpack_from("<Q", wide, at)[0]
            at += 8
        else:
            yield value, value


def _read(joined: Joined, start: int, size: int) -> bytes:
    """Exactly these bytes; struct.error when there are not so many."""
    if start + size > joined.starts[-1]:
        raise struct.error
    joined.seek(start)
    content = bytearray()
    while len(content) < size:
        content += joined.read(size - len(content)) or b""
    return bytes(content)
