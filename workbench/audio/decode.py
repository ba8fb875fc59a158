"""Sound file -> 16 kHz mono int16."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import soundfile

from workbench.config import SAMPLE_RATE


class UnreadableAudio(ValueError):
    """A file that holds no usable audio; the message says why, without the file's name."""


DECODING_VERSION = 2  # raised when the same file would decode to other samples
FORMATS = {".wav": {"WAV", "WAVEX", "RF64"}, ".flac": {"FLAC"}, ".ogg": {"OGG"}, ".mp3": {"MP3"}}


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
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            samples = file.read(dtype="float32", always_2d=True)  # (S, channels)
            rate, kind, announced = file.samplerate, file.format, _announced_frames(file)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:  # TypeError: a headerless .raw
        raise UnreadableAudio(f"cannot be decoded ({error})") from None
    if len(samples) == 0:
        raise UnreadableAudio("is empty")
    if not np.isfinite(samples).all():
        raise UnreadableAudio("holds NaN or infinity")
    remarks = []
    if kind not in FORMATS.get(suffix.lower(), {kind}):
        remarks.append(f"is {kind}, whatever its name says")
    if samples.shape[1] > 2:
        remarks.append(f"has {samples.shape[1]} channels, which are averaged")
    if len(samples) < announced:
        remarks.append(
            f"ends after {len(samples) / rate:.2f} s of the {announced / rate:.2f} s that it announces"
        )
    mono = resample(samples.mean(axis=1), rate)
    return np.round(np.clip(mono, -1.0, 1.0) * 32767).astype(np.int16), remarks


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """(S,) float32 at `rate` Hz -> at 16 kHz; what lies above 8 kHz is more than 100 dB down."""
    if rate == SAMPLE_RATE:
        return samples
    import soxr  # here: without it the training core still has all that is at 16 kHz

    return np.asarray(soxr.resample(samples, rate, SAMPLE_RATE))


def _announced_frames(file: soundfile.SoundFile) -> int:
    """By the header. libsndfile counts what a cut-off WAV still has, and tells of it in its log alone."""
    cut_off = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if cut_off is None or int(cut_off[1]) >= 0xFFFFFF00:  # a stream whose length was not known
        return int(file.frames)
    return int(file.frames * int(cut_off[1]) / max(int(cut_off[2]), 1))
