"""Small videos whose sound is known, by PyAV."""

import importlib.util

import numpy as np
import pytest

from workbench.config import SAMPLE_RATE

needs_av = pytest.mark.skipif(
    importlib.util.find_spec("av") is None, reason="not installed: av (extra video)"
)
LAYOUT_OF = {1: "mono", 2: "stereo", 6: "5.1"}
INDEX_FIRST = {"mp4": {"movflags": "faststart"}}  # as videos of the web have it: a part of one can be read


def write_video(path, container, codec, rate=48_000, channels=2, seconds=1.0, picture=False, title=None):
    """A sine of 1 kHz, level 0.5, in every channel, and a black picture beside it; no codec: no sound.

    A `title` is kept in Latin-1.
    """
    import av

    options = INDEX_FIRST.get(container, {})
    with av.open(str(path), "w", format=container, options=options, metadata_encoding="latin-1") as file:
        if title:
            file.metadata["title"] = title
        if picture:
            film = file.add_stream("mpeg4", rate=10)
            film.width = film.height = 32
        track = file.add_stream(codec, rate=rate, layout=LAYOUT_OF[channels]) if codec else None
        if picture:
            black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            for _ in range(round(10 * seconds)):
                file.mux(film.encode(black.reformat(format="yuv420p")))
            file.mux(film.encode(None))
        if track:
            sine = 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(round(rate * seconds)) / rate)
            samples = np.tile(sine.astype(np.float32), (channels, 1))
            sound = av.AudioFrame.from_ndarray(samples, format="fltp", layout=LAYOUT_OF[channels])
            sound.sample_rate, sound.pts = rate, 0
            context = track.codec_context
            cutter = av.AudioResampler(context.format, context.layout, rate, context.frame_size)
            for frame in [*cutter.resample(sound), *cutter.resample(None), None]:
                file.mux(track.encode(frame))


def amplitude_of(samples):
    """Of each Hz, away from the edges."""
    middle = samples[len(samples) // 2 - 4_000 :][:8_000] / 32767
    window = np.hanning(8_000)
    return np.abs(np.fft.rfft(middle * window, SAMPLE_RATE)) * 2 / window.sum()
