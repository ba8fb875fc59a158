"""What frames of MP3 and pages of Ogg tell: how much there is, and whether the end is missing."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple, Protocol

# kbit/s by layer: of MPEG 1, and of MPEG 2 and 2.5. Index 0 is that of a bitrate that is not told.
BITRATES_1 = {
    1: (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
BITRATES_2 = {
    1: (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    3: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MPEG_1 = 3  # as the two bits of the version have it
RATES = (44_100, 48_000, 32_000)  # Hz, of MPEG 1
RATE_DIVISORS = {MPEG_1: 1, 2: 2, 0: 4}  # the others: MPEG 2 and 2.5
SIDE_BYTES = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}  # MPEG 1?, mono?
ID3V1_BYTES = 128
LONGEST_PAGE_BYTES = 65_307
END_OF_STREAM = 4  # in the flags of an Ogg page
CHUNK_BYTES = 1 << 20


class Readable(Protocol):
    """A file."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class MpegFrames:
    """All frames of a file but a Xing or Info header, which is one without sound."""

    count: int  # those that are whole
    announced: int | None  # how many there should be, by the header
    samples_each: int
    first_bytes: int
    begin: int  # in bytes: where the first is
    end: int  # where the last that is whole ends
    is_cut: bool  # the next one is there in part

    @property
    def samples(self) -> int:
        return self.count * self.samples_each


class _Frame(NamedTuple):
    """What the header of one frame says."""

    kind: tuple[int, int, int]  # version, layer and rate, which all frames of a file share
    samples: int
    size: int  # bytes


def mpeg_frames(file: Readable) -> MpegFrames | None:
    """By the header of each; None where the first does not tell how long it is."""
    window = _Window(file)
    end = window.size
    if window.at(end - ID3V1_BYTES, 3) == b"TAG":
        end -= ID3V1_BYTES
    begin = _next_frame(window, 0, end, None)
    first = None if begin is None else _frame_of(window.at(begin, 3))
    if begin is None or first is None:
        return None
    is_header, announced = _header(window.at(begin, 48), first)
    if is_header:
        begin += first.size
        first = _frame_of(window.at(begin, 3)) or first
    count, after, is_cut = 0, begin, False
    position: int | None = begin
    while position is not None and position < end:
        frame = _frame_of(window.at(position, 3))
        if frame is None or frame.kind != first.kind:
            position = _next_frame(window, position, end, first)
        elif is_cut := position + frame.size > end:
            break
        else:
            count += 1
            position = after = position + frame.size
    return MpegFrames(
        count=count,
        announced=announced,
        samples_each=first.samples,
        first_bytes=first.size,
        begin=begin,
        end=after,
        is_cut=is_cut,
    )


def _next_frame(window: _Window, position: int, end: int, like: _Frame | None) -> int | None:
    """Where the next frame begins that one of its kind follows, or the end: any bytes may look like one."""
    while position < end:
        head = window.at(position, 10)
        if head.startswith(b"ID3") and len(head) == 10:  # it may hold a picture
            size = functools.reduce(lambda size, byte: size << 7 | byte, head[6:])
            position += 10 + size + (10 if head[5] & 0x10 else 0)
            continue
        frame = _frame_of(head[:3])
        if frame is not None and (like is None or frame.kind == like.kind):
            following = _frame_of(window.at(position + frame.size, 3))
            if position + frame.size == end or (following is not None and following.kind == frame.kind):
                return position
        position = window.find(b"\xff", position + 1)
    return None


@functools.cache
def _frame_of(head: bytes) -> _Frame | None:
    """Of the first three bytes of a frame; None where they are none."""
    if len(head) < 3 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version not in RATE_DIVISORS or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = RATES[rate] // RATE_DIVISORS[version]
    bits = 1000 * (BITRATES_1 if version == MPEG_1 else BITRATES_2)[layer][bitrate]
    kind = (version, layer, hertz)
    if layer == 1:
        return _Frame(kind, 384, (12 * bits // hertz + padding) * 4)
    samples = 576 if layer == 3 and version != MPEG_1 else 1152
    return _Frame(kind, samples, samples // 8 * bits // hertz + padding)


def _header(content: bytes, frame: _Frame) -> tuple[bool, int | None]:
    """Whether a file's first frame is a Xing or Info header, and how many frames that announces."""
    version, layer, _ = frame.kind
    at = 4 + SIDE_BYTES[version == MPEG_1, content[3] >> 6 == 3]
    if layer != 3 or content[at : at + 4] not in (b"Xing", b"Info"):
        return False, None
    has_count = content[at + 7] & 1
    return True, (int.from_bytes(content[at + 8 : at + 12], "big") or None) if has_count else None


class Stretched:
    """The frames of a file, as if many more followed.

    libsndfile takes a file's length to be its bytes by those of its first frame, and gives nothing behind.
    """

    def __init__(self, file: Readable, frames: MpegFrames) -> None:
        self._file, self._begin, self._end = file, frames.begin, frames.end
        self._size = 2 * max(frames.count * frames.first_bytes, frames.end - frames.begin) + ID3V1_BYTES
        self._at = 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        left = self._end - self._begin - self._at
        if self._at >= self._size - ID3V1_BYTES:  # where a tag is looked for
            content = bytes(min(size, self._size - self._at))
        else:
            self._file.seek(self._begin + self._at)
            content = self._file.read(max(0, left if size < 0 else min(size, left)))
        self._at += len(content)
        return content


def is_ogg_cut(file: Readable) -> bool:
    """Whether the last page is not there whole, or does not say that it is the last."""
    file.seek(max(0, file.seek(0, 2) - 2 * LONGEST_PAGE_BYTES))
    page = file.read(2 * LONGEST_PAGE_BYTES).rpartition(b"OggS\0")[2]
    if len(page) < 22 or not page[0] & END_OF_STREAM:
        return True
    lengths = page[22 : 22 + page[21]]
    return len(page) < 22 + page[21] + sum(lengths)


class _Window:
    """A file's bytes at any place, read in large parts."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        self._begin, self._part = 0, b""

    def at(self, position: int, size: int) -> bytes:
        """Fewer behind the end, none before the beginning."""
        if position < 0:
            return b""
        begin = position - self._begin
        if not 0 <= begin <= len(self._part) - size:
            self._begin, begin = position, 0
            self._file.seek(position)
            self._part = self._file.read(CHUNK_BYTES)
        return self._part[begin : begin + size]

    def find(self, wanted: bytes, position: int) -> int:
        """Where a byte is next, or the end."""
        while self.at(position, 1):
            found = self._part.find(wanted, position - self._begin)
            if found >= 0:
                return self._begin + found
            position = self._begin + len(self._part)
        return self.size
