"""Sound file, or the sound of a video -> 16 kHz mono int16, block by block: a recording may last for days."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

import numpy as np
import soundfile

from workbench.audio.framing import MpegFrames, Stretched, is_ogg_cut, mpeg_frames
from workbench.config import SAMPLE_RATE

if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer


class UnreadableAudio(ValueError):
    """A file that holds no usable audio; the message says why, without the file's name."""


# Raised when the same file would decode to other samples: for all files, or those of a suffix alone.
DECODING_VERSION = 3
DECODING_VERSIONS = {".mp3": 4}
FORMATS = {
    ".wav": {"WAV", "WAVEX", "RF64"},
    ".flac": {"FLAC"},
    ".ogg": {"OGG"},
    ".opus": {"OGG"},
    ".mp3": {"MP3"},
    ".aif": {"AIFF"},
    ".aiff": {"AIFF"},
    ".au": {"AU"},
    ".caf": {"CAF"},
    ".oga": {"OGG"},
    ".w64": {"W64"},
}
# Of videos, and AAC: libsndfile knows neither, PyAV (the extra `video`) does.
SOUNDTRACKS = (".m4a", ".aac", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv")
# FFmpeg reads playlists, too, whatever their names, and would open the files and addresses in them.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,aac"
NEEDS_PYAV = "is a video or AAC, which needs PyAV: python -m pip install av"
BLOCK = 1 << 23  # samples of a recording that are held at a time: 3 min at 44.1 kHz, of all channels
CODEC_DELAY = 0.1  # s, by which a track's announced length may differ from what was encoded
LONGER_PICTURE = 1.0  # s, by which that of a whole video may


def decoding_version(files: Iterable[str]) -> int:
    """Of a set: that of a suffix which it does not have leaves it what it is."""
    suffixes = {file[file.rfind(".") :].lower() for file in files}
    return max([DECODING_VERSION, *(DECODING_VERSIONS.get(suffix, 0) for suffix in suffixes)])


def decode(path: Path) -> np.ndarray:
    """(S,) int16 at 16 kHz: channels averaged, resampled, louder than full scale clipped.

    Raises UnreadableAudio for a file that cannot be decoded, is empty or holds NaN or infinity.
    """
    try:
        with path.open("rb") as file:
            return np.concatenate(list(decode_blocks(file, path.suffix, [])))
    except OSError as error:
        raise UnreadableAudio(f"cannot be decoded ({error.strerror})") from None


def decode_blocks(file: IO[bytes], suffix: str, remarks: list[str]) -> Iterator[np.ndarray]:
    """`decode` of an open file, in parts; some may come before what it raises.

    `remarks` gets what is remarkable about the file, though it can be used.
    """
    blocks = _decoded(file, suffix, remarks)
    try:
        while True:
            with _interrupts_deferred():
                block = next(blocks, None)
            if block is None:
                return
            yield block
    except (UnreadableAudio, ImportError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # decoders meet files that nobody foresaw, and none may end the work on all others
        raise UnreadableAudio(f"cannot be decoded ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Ctrl-C raises at the end: raised where a C library has Python read for it, it would be dropped, and the
    file would count as cut off."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[0])


def _decoded(file: IO[bytes], suffix: str, remarks: list[str]) -> Iterator[np.ndarray]:
    source = _Source(file)
    suffix = suffix.lower()
    sound = _open_soundtrack(source) if suffix in SOUNDTRACKS else _open_sound(source, suffix)
    if sound.kind not in FORMATS.get(suffix, {sound.kind}):
        remarks.append(f"is {sound.kind}, whatever its name says")
    resampler: Resampler | None = None
    frames = channels = rate = given = 0
    for samples, rate in sound.blocks:
        if not np.isfinite(samples).all():
            raise UnreadableAudio("holds NaN or infinity")
        resampler = resampler or Resampler(rate)
        frames += len(samples)
        channels = samples.shape[1]
        given += len(part := _int16(resampler(samples.mean(axis=1))))
        yield part
    if source.error is not None:
        raise UnreadableAudio(f"cannot be read ({source.error.strerror})")
    if resampler is not None:
        given += len(part := _int16(resampler(np.zeros(0, np.float32), last=True)))
        yield part
    if given == 0:
        raise UnreadableAudio("is empty")
    if channels > 2:
        remarks.append(f"has {channels} channels, which are averaged")
    if frames / rate < sound.announced - sound.tolerance:
        remarks.append(f"ends after {frames / rate:.2f} s of the {sound.announced:.2f} s that it announces")
    elif sound.is_cut:
        remarks.append(f"is cut off after {frames / rate:.2f} s")


def _int16(samples: np.ndarray) -> np.ndarray:
    return np.round(np.clip(samples, -1.0, 1.0) * 32767).astype(np.int16)


class _Source:
    """A file, for libraries that take an error of reading for its end, and name a file as they like."""

    def __init__(self, file: IO[bytes]) -> None:
        self.error: OSError | None = None
        self.seek, self.tell = file.seek, file.tell
        self._file = file

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self.error = error
            return b""


class Resampler:
    """(S,) float32 at `rate` Hz, in parts -> at 16 kHz; what lies above 8 kHz is more than 100 dB down."""

    def __init__(self, rate: int) -> None:
        self._stream = None
        if rate != SAMPLE_RATE:
            import soxr  # here: without it the training core still has all that is at 16 kHz

            self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, num_channels=1, dtype="float32")

    def __call__(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """What is known with this part; with `last`, what was still owed, too."""
        return samples if self._stream is None else np.asarray(self._stream.resample_chunk(samples, last))


@dataclass(frozen=True)
class _Sound:
    """A recording that is open."""

    blocks: Iterator[tuple[np.ndarray, int]]  # (S, channels) float32, not empty; their rate in Hz
    kind: str  # of file
    announced: float  # s, by the header
    tolerance: float = 0.0  # s, by which it may be shorter
    is_cut: bool = False  # though no length was announced


def _open_sound(file: _Source, suffix: str) -> _Sound:
    """By libsndfile."""
    sound = _opened(file, file)
    begin = file.tell()
    frames = mpeg_frames(file) if sound.format == "MP3" else None
    is_cut = frames.is_cut if frames is not None else sound.format == "OGG" and is_ogg_cut(file)
    file.seek(begin)
    announced = _announced_frames(sound)
    if frames is not None and _is_guess_or_part(frames):
        announced = frames.samples
        if sound.frames < announced and suffix == ".mp3":  # by its name: see DECODING_VERSIONS
            sound.close()
            sound = _opened(Stretched(file, frames), file)
    return _Sound(_sound_blocks(sound, file), sound.format, announced / sound.samplerate, is_cut=is_cut)


def _opened(stream: _Source | Stretched, file: _Source) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(stream)
    except soundfile.LibsndfileError as error:
        raise UnreadableAudio(_reason(file, error.error_string)) from None


def _is_guess_or_part(frames: MpegFrames) -> bool:
    """Whether libsndfile goes by a length that is not the file's: a guess, where no header has it; or that of
    the first of several files, put one behind the other."""
    return frames.announced is None or frames.count > frames.announced + 1  # some count the header, too


def _sound_blocks(sound: soundfile.SoundFile, file: _Source) -> Iterator[tuple[np.ndarray, int]]:
    whole, frames = True, max(1, BLOCK // sound.channels)
    with sound:
        while whole:  # behind a part that is short, libsndfile would give again what it gave
            try:
                samples = sound.read(frames, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise UnreadableAudio(_reason(file, error.error_string)) from None
            whole = len(samples) == frames
            if len(samples):
                yield samples, sound.samplerate


def _reason(file: _Source, error: str) -> str:
    return f"cannot be decoded ({error})" if file.error is None else f"cannot be read ({file.error.strerror})"


def _announced_frames(file: soundfile.SoundFile) -> int:
    """By the header. libsndfile counts what a cut-off WAV still has, and tells of it in its log alone."""
    cut_off = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if cut_off is None or int(cut_off[1]) >= 0xFFFFFF00:  # a stream whose length was not known
        return int(file.frames)
    return int(file.frames * int(cut_off[1]) / max(int(cut_off[2]), 1))


def can_read_soundtracks() -> bool:
    """Whether PyAV is installed."""
    return find_spec("av") is not None


def _open_soundtrack(file: _Source) -> _Sound:
    """The first sound track, by PyAV; packets that are damaged are missing from it."""
    if not can_read_soundtracks():
        raise UnreadableAudio(NEEDS_PYAV)
    import av

    try:
        # Titles are in any encoding, and are not read here.
        container = av.open(file, options={"format_whitelist": CONTAINERS}, metadata_errors="replace")
    except av.FFmpegError as error:
        raise UnreadableAudio(_reason(file, error.strerror)) from None
    if not container.streams.audio:
        container.close()
        raise UnreadableAudio("has no sound track")
    track = container.streams.audio[0]
    blocks = _soundtrack_blocks(container)
    if track.duration is not None:
        return _Sound(blocks, "a sound track", float(track.duration * track.time_base), CODEC_DELAY)
    whole = (container.duration or 0) / av.time_base  # Matroska and FLV do not say more
    return _Sound(blocks, "a sound track", whole, LONGER_PICTURE)


def _soundtrack_blocks(container: InputContainer) -> Iterator[tuple[np.ndarray, int]]:
    import av

    held: list[np.ndarray] = []
    count = rate = 0
    try:
        for frame in _frames(container):
            held.append(frame.to_ndarray())
            rate = frame.sample_rate  # the track's own may be half of it: AAC with spectral band replication
            count += frame.samples
            if count * len(held[0]) >= BLOCK:
                yield np.concatenate(held, axis=1).T, rate
                held, count = [], 0
    except (av.FFmpegError, ValueError) as error:  # ValueError: a format that changes on the way
        raise UnreadableAudio(f"cannot be decoded ({getattr(error, 'strerror', error)})") from None
    if held:
        yield np.concatenate(held, axis=1).T, rate


def _frames(container: InputContainer) -> Iterator[AudioFrame]:
    import av

    resampler = av.AudioResampler(format="fltp")  # of the format alone: rate and channels are kept
    with container:
        for packet in container.demux(container.streams.audio[0]):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                continue
            for frame in decoded:
                yield from resampler.resample(frame)
