"""Sound file -> 16 kHz mono int16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

from workbench.config import SAMPLE_RATE


class UnreadableAudio(ValueError):
    """A file that holds no usable audio; the message says why, without the file's name."""


def decode(path: Path) -> np.ndarray:
    """(S,) int16 at 16 kHz: channels averaged, resampled, louder than full scale clipped.

    Raises UnreadableAudio for a file that cannot be decoded, is empty or holds NaN or infinity.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)  # (S, channels)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:  # TypeError: a headerless .raw
        raise UnreadableAudio(f"cannot be decoded ({error})") from None
    if len(samples) == 0:
        raise UnreadableAudio("is empty")
    if not np.isfinite(samples).all():
        raise UnreadableAudio("holds NaN or infinity")
    mono = torch.from_numpy(samples.mean(axis=1))
    if rate != SAMPLE_RATE:
        mono = torchaudio.functional.resample(mono, rate, SAMPLE_RATE)
    return np.round(np.clip(mono.numpy(), -1.0, 1.0) * 32767).astype(np.int16)
