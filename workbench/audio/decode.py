"""Sound file, or the sound of a video -> 16 kHz mono int16."""

from __future__ import annotations

import io
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from workbench.config import SAMPLE_RATE


class UnreadableAudio(ValueError):
    """A file that holds no usable audio; the message says why, without the file's name."""


DECODING_VERSION = 2  # raised when the same file would decode to other samples
FORMATS = {
    ".wav": {"WAV", "WAVEX", "RF64"},
    ".flac": {"FLAC"},
    ".ogg": {"OGG"},
    ".opus": {"OGG"},
    ".mp3": {"MP3"},
}
# Of videos, and AAC: libsndfile knows neither, PyAV (the extra `video`) does.
SOUNDTRACKS = (".m4a", ".aac", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv")
# FFmpeg reads playlists, too, whatever their names, and would open the files and addresses in them.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,aac"
NEEDS_PYAV = "is a video or AAC, which needs PyAV: python -m pip install av"
CODEC_DELAY = 0.1  # s, by which a track's announced length may differ from what was encoded


def decode(path: Path) -> np.ndarray:
    """(S,) int16 at 16 kHz: channels averaged, resampled, louder than full scale clipped.

    Raises UnreadableAudio for a file that cannot be decoded, is empty or holds NaN or infinity.
    """
    try:
        return decode_bytes(path.read_bytes(), path.suffix)[0]
    except OSError as error:
        raise UnreadableAudio(f"cannot be decoded ({error.strerror})") from None


def decode_bytes(content: bytes, suffix: str) -> tuple[np.ndarray, list[str]]:
    """`decode` of a file's bytes; and what is remarkable about it, though it can be used."""
    if suffix.lower() in SOUNDTRACKS:
        sound, remarks = _read_soundtrack(content), []
    else:
        sound, kind = _read_sound(content)
        remarks = (
            [] if kind in FORMATS.get(suffix.lower(), {kind}) else [f"is {kind}, whatever its name says"]
        )
    samples, rate = sound.samples, sound.rate
    if len(samples) == 0:
        raise UnreadableAudio("is empty")
    if not np.isfinite(samples).all():
        raise UnreadableAudio("holds NaN or infinity")
    if samples.shape[1] > 2:
        remarks.append(f"has {samples.shape[1]} channels, which are averaged")
    if len(samples) < sound.announced:
        remarks.append(
            f"ends after {len(samples) / rate:.2f} s of the {sound.announced / rate:.2f} s that it announces"
        )
    mono = resample(samples.mean(axis=1), rate)
    return np.round(np.clip(mono, -1.0, 1.0) * 32767).astype(np.int16), remarks


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """(S,) float32 at `rate` Hz -> at 16 kHz; what lies above 8 kHz is more than 100 dB down."""
    if rate == SAMPLE_RATE:
        return samples
    import soxr  # here: without it the training core still has all that is at 16 kHz

    return np.asarray(soxr.resample(samples, rate, SAMPLE_RATE))


class _Sound(NamedTuple):
    samples: np.ndarray  # (S, channels) float32
    rate: int  # Hz
    announced: int  # samples a channel, by the header


def _read_sound(content: bytes) -> tuple[_Sound, str]:
    """By libsndfile; and the format, as it calls it."""
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            samples = file.read(dtype="float32", always_2d=True)
            return _Sound(samples, file.samplerate, _announced_frames(file)), file.format
    except (soundfile.LibsndfileError, OSError, TypeError) as error:  # TypeError: a headerless .raw
        raise UnreadableAudio(f"cannot be decoded ({error})") from None


def _announced_frames(file: soundfile.SoundFile) -> int:
    """By the header. libsndfile counts what a cut-off WAV still has, and tells of it in its log alone."""
    cut_off = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if cut_off is None or int(cut_off[1]) >= 0xFFFFFF00:  # a stream whose length was not known
        return int(file.frames)
    return int(file.frames * int(cut_off[1]) / max(int(cut_off[2]), 1))


def can_read_soundtracks() -> bool:
    """Whether PyAV is installed."""
    return find_spec("av") is not None


def _read_soundtrack(content: bytes) -> _Sound:
    """The first sound track, by PyAV; packets that are damaged are missing from it."""
    if not can_read_soundtracks():
        raise UnreadableAudio(NEEDS_PYAV)
    import av

    try:
        with av.open(io.BytesIO(content), options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.audio:
                raise UnreadableAudio("has no sound track")
            track = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp")  # of the format alone: rate and channels are kept
            frames = []
            for packet in container.demux(track):
                try:
                    decoded = packet.decode()
                except av.FFmpegError:
                    continue
                frames += [part for frame in decoded for part in resampler.resample(frame)]
            seconds = float((track.duration or 0) * track.time_base)
    except UnreadableAudio:
        raise
    except av.FFmpegError as error:
        raise UnreadableAudio(f"cannot be decoded ({error.strerror})") from None
    except ValueError as error:  # a format that changes on the way
        raise UnreadableAudio(f"cannot be decoded ({error})") from None
    if not frames:
        raise UnreadableAudio("is empty")
    rate = frames[0].sample_rate  # the track's own may be half of it, for AAC with spectral band replication
    samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1).T
    short = seconds - len(samples) / rate
    return _Sound(samples, rate, int(seconds * rate) if short > CODEC_DELAY else len(samples))
