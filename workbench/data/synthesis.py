"""A procedural corpus of short sound events, to learn from where no recordings are at hand.

A class says how a sound moves in time (it rises, pulses, swells, ...). Where it lies in frequency
and what it is made of are drawn independently of the class, and the classes come in families that
spread their energy alike: a clip's average spectrum says little of its labels, the order of its
frames says nearly all.

Each clip is a pure function of (recipe, part, index): it has a counter-based generator of its own,
so clips come out alike in any order, process and machine, to one int16 step. Everything up to the
last rounding is therefore float64.

Axes: S samples of a clip, N samples of an event, K bins of the clip's spectrum, C classes.
"""

import hashlib
import json
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

RECIPE_VERSION: int = 1  # raised whenever any clip changes
SAMPLE_RATE = 16_000  # Hz

LOWEST_CARRIER, HIGHEST_CARRIER = 200.0, 3_500.0  # Hz, at the middle of an event's pitch range
HIGHEST_PARTIAL = 7_400.0  # Hz; short of half the sample rate, so that nothing folds back
LEAST_CLIP_SECONDS = 1.0  # below this the slower movements no longer fit
PEAK = 0.3  # of full scale, before the gain
GAIN_DB = 10.0  # either way; PEAK at the largest gain is 0.95 of full scale
LONGEST_ECHO_SECONDS = 0.25

Samples = NDArray[np.floating]  # of 64 bits
Generator = np.random.Generator
Motion = tuple[Samples, Samples]  # pitch (N,) in octaves about the carrier, amplitude (N,)
Mover = Callable[[Generator, Samples, float], Motion]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a corpus is made of; two equal recipes give the same clips."""

    clip_seconds: float = 3.2
    max_events: int = 2  # each clip has 1 to max_events, of distinct classes
    min_snr_db: float = 6.0  # of each event, before the room, to the clip's background noise
    max_snr_db: float = 25.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not LEAST_CLIP_SECONDS <= self.clip_seconds < float("inf"):
            raise ValueError(f"clip_seconds is {self.clip_seconds}; it must be at least {LEAST_CLIP_SECONDS}")
        if not 1 <= self.max_events <= len(CLASSES):
            raise ValueError(
                f"max_events is {self.max_events}; it must be 1 to {len(CLASSES)}, since a clip's "
                "events are of distinct classes"
            )
        if not -100.0 <= self.min_snr_db <= self.max_snr_db <= 100.0:
            raise ValueError(
                f"min_snr_db is {self.min_snr_db} and max_snr_db {self.max_snr_db}; they must be "
                "in this order and within -100 to 100 dB"
            )

    @property
    def num_samples(self) -> int:
        """S."""
        return round(self.clip_seconds * SAMPLE_RATE)


def fingerprint(recipe: Recipe) -> str:
    """The corpus's name: a sha256 (hex) of all that decides its clips and labels."""
    content = {"recipe": _settings(recipe), "version": RECIPE_VERSION, "classes": CLASSES}
    return _digest(content).hex()


def synthesise(recipe: Recipe, part: str, index: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """One clip of a part ("train", "test", ...): waveform (S,) at 16 kHz, labels (C,) of 0/1."""
    rng = _clip_generator(recipe, part, index)
    num_samples = recipe.num_samples
    num_events = int(rng.integers(1, recipe.max_events + 1))
    classes = rng.permutation(len(CLASSES))[:num_events]

    events = np.zeros(num_samples)
    for name in (CLASSES[c] for c in classes):
        event = _event(rng, name, recipe.clip_seconds)
        onset = int(rng.integers(0, num_samples - len(event) + 1))
        snr_db = rng.uniform(recipe.min_snr_db, recipe.max_snr_db)
        events[onset : onset + len(event)] += _amplitude(snr_db) * event

    echo = _echo(rng)
    fft_size = _fast_fft_size(num_samples + len(echo) - 1)
    hertz = np.fft.rfftfreq(fft_size, 1 / SAMPLE_RATE)  # (K,)
    in_room = np.fft.rfft(events, fft_size) * np.fft.rfft(echo, fft_size)
    recorded = (in_room + _noise_spectrum(rng, hertz, fft_size)) * _equalisation(rng, hertz)
    mixture = np.fft.irfft(recorded, fft_size)[:num_samples]

    level = PEAK * _amplitude(rng.uniform(-GAIN_DB, GAIN_DB)) / np.abs(mixture).max()
    waveform = np.rint(mixture * (level * np.iinfo(np.int16).max)).astype(np.int16)
    labels = np.zeros(len(CLASSES), np.uint8)
    labels[classes] = 1
    return waveform, labels


# Identity


def _settings(recipe: Recipe) -> dict[str, float | int]:
    """The recipe's fields, by name; 25 and 25.0 read alike where a field is a float."""
    return {
        f.name: float(getattr(recipe, f.name)) if f.type is float else getattr(recipe, f.name)
        for f in fields(recipe)
    }


def _digest(content: object) -> bytes:
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).digest()


def _clip_generator(recipe: Recipe, part: str, index: int) -> Generator:
    number = operator.index(index)
    if number < 0:
        raise ValueError(f"index is {number}; a clip's index counts from 0")
    digest = _digest({"recipe": _settings(recipe), "part": part, "index": number})
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


# Motions: each takes its time axis (N,) in seconds and its length in seconds


def _octaves(rng: Generator) -> float:
    """How far a moving pitch travels; one range for every class that moves."""
    return rng.uniform(0.5, 1.1)


def _cycles(rng: Generator, length: float, least_hz: float, most_hz: float, fewest: int) -> float:
    """How often a movement repeats within the event."""
    return max(rng.uniform(least_hz, most_hz) * length, fewest)


def _angle(rng: Generator, time: Samples, length: float, cycles: float) -> Samples:
    return 2 * np.pi * (cycles * time / length + rng.random())


def _steady(time: Samples, length: float) -> Samples:
    """Amplitude (N,) of an event that only starts and stops."""
    ramp = 0.03  # seconds
    return np.minimum(np.minimum(time, length - time) / ramp, 1.0)


def _rising(rng: Generator, time: Samples, length: float) -> Motion:
    position = (time / length) ** rng.uniform(0.7, 1.4)
    return _octaves(rng) * (position - 0.5), _steady(time, length)


def _vibrato(rng: Generator, time: Samples, length: float) -> Motion:
    angle = _angle(rng, time, length, _cycles(rng, length, 3.0, 6.0, fewest=4))
    return _octaves(rng) / 2 * np.sin(angle), _steady(time, length)


def _two_tone(rng: Generator, time: Samples, length: float) -> Motion:
    angle = _angle(rng, time, length, _cycles(rng, length, 1.2, 2.4, fewest=2))
    return _octaves(rng) / 2 * np.tanh(12.0 * np.sin(angle)), _steady(time, length)


def _trill_up(rng: Generator, time: Samples, length: float) -> Motion:
    cycles = _cycles(rng, length, 2.5, 5.0, fewest=3)
    position = np.mod(cycles * time / length + rng.random(), 1.0)
    return _octaves(rng) * (position - 0.5), _steady(time, length)


def _tremolo(rng: Generator, time: Samples, length: float) -> Motion:
    angle = _angle(rng, time, length, _cycles(rng, length, 3.0, 6.0, fewest=4))
    level_db = rng.uniform(9.0, 14.0) * (np.sin(angle) - 1.0)
    return np.zeros_like(time), _amplitudes(level_db) * _steady(time, length)


def _swell(rng: Generator, time: Samples, length: float) -> Motion:
    level_db = rng.uniform(25.0, 40.0) * (time / length - 1.0)
    return np.zeros_like(time), _amplitudes(level_db) * _steady(time, length)


def _struck(rng: Generator, time: Samples, onsets: Samples) -> Motion:
    """A sound struck at each onset (seconds, sorted, the first at 0) and ringing briefly."""
    since = time - onsets[np.searchsorted(onsets, time, side="right") - 1]
    attack, ring = 0.003, rng.uniform(0.015, 0.03)  # seconds
    return np.zeros_like(time), -np.expm1(-since / attack) * np.exp(-since / ring)


def _num_strokes(rng: Generator, length: float) -> int:
    return int(_cycles(rng, length, 4.0, 7.0, fewest=6))


def _pulses(rng: Generator, time: Samples, length: float) -> Motion:
    number = _num_strokes(rng, length)
    return _struck(rng, time, np.arange(number) * (length / number))


def _accelerating(rng: Generator, time: Samples, length: float) -> Motion:
    gaps = rng.uniform(4.0, 7.0) ** -np.linspace(0.0, 1.0, _num_strokes(rng, length))
    return _struck(rng, time, (np.cumsum(gaps) - gaps[0]) * (length / gaps.sum()))


def _poisson_clicks(rng: Generator, time: Samples, length: float) -> Motion:
    number = _num_strokes(rng, length)
    shortest = 0.05  # seconds; nearer clicks would ring into one
    onsets = np.sort(rng.uniform(0.0, length - number * shortest, number))
    return _struck(rng, time, onsets - onsets[0] + shortest * np.arange(number))


def _backwards(motion: Mover) -> Mover:
    """The same movement reversed in time, and so of the very same average spectrum."""

    def reversed_motion(rng: Generator, time: Samples, length: float) -> Motion:
        pitch, amplitude = motion(rng, time, length)
        return pitch[::-1], amplitude[::-1]

    return reversed_motion


_MOTIONS: dict[str, Mover] = {
    "rising": _rising,
    "falling": _backwards(_rising),
    "vibrato": _vibrato,
    "two_tone": _two_tone,
    "tremolo": _tremolo,
    "pulses": _pulses,
    "accelerating": _accelerating,
    "poisson_clicks": _poisson_clicks,
    "swell": _swell,
    "decay": _backwards(_swell),
    "trill_up": _trill_up,
    "trill_down": _backwards(_trill_up),
}
CLASSES: tuple[str, ...] = tuple(_MOTIONS)


# Sources: each takes the instantaneous phase (N,) in radians and the highest frequency in Hz


def _tone(rng: Generator, phase: Samples, highest: float) -> Samples:
    return np.sin(phase)


def _harmonic(rng: Generator, phase: Samples, highest: float) -> Samples:
    """Up to eight harmonics, summed as a polynomial in exp(i phase)."""
    number = max(1, min(8, int(HIGHEST_PARTIAL / highest)))
    weights = np.arange(1, number + 1) ** -rng.uniform(0.5, 1.5)
    turn = np.cos(phase) + 1j * np.sin(phase)
    total = np.full_like(turn, weights[-1])
    for weight in weights[-2::-1]:
        total *= turn
        total += weight
    return (total * turn).imag


def _inharmonic(rng: Generator, phase: Samples, highest: float) -> Samples:
    """Up to four partials at no whole-number ratio, the lowest on the carrier."""
    ratios = np.cumprod(np.append(1.0, rng.uniform(1.25, 1.75, 3)))
    weights, starts = rng.uniform(0.4, 1.0, 4), rng.uniform(0.0, 2 * np.pi, 4)
    heard = [k for k in range(4) if k == 0 or ratios[k] * highest < HIGHEST_PARTIAL]
    return np.sum([weights[k] * np.sin(ratios[k] * phase + starts[k]) for k in heard], axis=0)


def _narrow_noise(rng: Generator, phase: Samples, highest: float) -> Samples:
    """Noise about the carrier: its two quadratures wander, too fast to be heard as a movement."""
    step = int(SAMPLE_RATE / max(80.0, 0.1 * highest))
    knots = rng.standard_normal((2, len(phase) // step + 2))
    at = np.arange(len(phase)) / step
    real, imaginary = (np.interp(at, np.arange(knots.shape[1]), row) for row in knots)
    return real * np.sin(phase) + imaginary * np.cos(phase)


_SOURCES = (_tone, _harmonic, _inharmonic, _narrow_noise)


def _event(rng: Generator, name: str, clip_seconds: float) -> Samples:
    """A dry event (N,) of the named class, of root mean square 1."""
    length = clip_seconds * rng.uniform(0.45, 0.85)
    time = np.arange(int(length * SAMPLE_RATE)) / SAMPLE_RATE
    pitch, amplitude = _MOTIONS[name](rng, time, length)
    carrier = LOWEST_CARRIER * (HIGHEST_CARRIER / LOWEST_CARRIER) ** rng.random()
    hertz = carrier * np.exp2(pitch)
    phase = (2 * np.pi / SAMPLE_RATE) * np.cumsum(hertz) + rng.uniform(0.0, 2 * np.pi)
    source = _SOURCES[int(rng.integers(len(_SOURCES)))]
    event = amplitude * source(rng, phase, float(hertz.max()))
    return event / np.sqrt(np.mean(event**2))


# The room, the background and the microphone


def _amplitude(decibels: float) -> float:
    return float(10 ** (decibels / 20))


def _amplitudes(decibels: Samples) -> Samples:
    return np.exp(np.log(10) / 20 * decibels)


def _echo(rng: Generator) -> Samples:
    """A room's impulse response: the direct sound, then noise that dies away by 60 dB."""
    seconds = rng.uniform(0.05, LONGEST_ECHO_SECONDS)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * np.exp(-np.log(1_000) * time / seconds)
    tail *= _amplitude(rng.uniform(-15.0, -3.0)) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return tail


def _noise_spectrum(rng: Generator, hertz: Samples, fft_size: int) -> NDArray[np.complexfloating]:
    """The spectrum (K,) of a coloured noise of root mean square 1, level below 100 Hz."""
    colour = np.maximum(hertz, 100.0) ** -rng.uniform(0.0, 1.0)
    white = rng.standard_normal((2, len(hertz)))
    noise = colour * (white[0] + 1j * white[1])
    power = 2 * np.sum(np.abs(noise) ** 2) / fft_size**2  # each bin but the ends stands for two
    return noise / np.sqrt(power)


def _equalisation(rng: Generator, hertz: Samples) -> Samples:
    """Gains (K,) that wander smoothly, by up to 12 dB, from octave to octave."""
    octave = np.log2(np.maximum(hertz, 60.0) / 60.0)
    knots_db = rng.uniform(-12.0, 12.0, 8)
    return _amplitudes(np.interp(octave, np.arange(8.0), knots_db))


def _fast_fft_size(least: int) -> int:
    """The least even 2^a 3^b 5^c that is no less than asked."""
    size = least + least % 2
    while pow(30, size.bit_length(), size):  # 0 when size has no other prime factor
        size += 2
    return size
