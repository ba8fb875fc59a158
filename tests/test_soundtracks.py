"""The sound of videos and of AAC, by PyAV: the samples that were encoded, or a reason why there are none."""

import io

import numpy as np
import pytest

from workbench.audio import decode as decoding
from workbench.audio.decode import UnreadableAudio, decode, decode_blocks
from workbench.config import SAMPLE_RATE

from .small_videos import amplitude_of, needs_av, write_video


def decode_bytes(content, suffix):
    """Its samples, and the remarks."""
    remarks = []
    return np.concatenate(list(decode_blocks(io.BytesIO(content), suffix, remarks))), remarks


KINDS = {  # suffix: container and codec
    ".mp4": ("mp4", "aac"),
    ".m4a": ("ipod", "aac"),
    ".aac": ("adts", "aac"),
    ".mkv": ("matroska", "aac"),
    ".webm": ("webm", "libopus"),
    ".avi": ("avi", "mp3"),
    ".flv": ("flv", "aac"),
}


@needs_av
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("suffix", "picture"),
    [*((suffix, False) for suffix in KINDS), (".mp4", True), (".mkv", True), (".avi", True)],
)
def test_a_sine_keeps_frequency_level_and_length(tmp_path, suffix, channels, picture):
    path = tmp_path / f"sine{suffix}"
    write_video(path, *KINDS[suffix], channels=channels, picture=picture)
    samples, remarks = decode_bytes(path.read_bytes(), suffix)
    assert remarks == []
    assert samples.dtype == np.int16
    assert abs(len(samples) - SAMPLE_RATE) < 0.1 * SAMPLE_RATE  # encoders pad
    amplitude = amplitude_of(samples)
    assert amplitude.argmax() == 1_000
    assert amplitude[1_000] == pytest.approx(0.5, rel=0.1)  # the MP3 encoder lowers it by 5 %


@needs_av
def test_many_channels_are_averaged_and_remarked(tmp_path):
    write_video(tmp_path / "x.mp4", "mp4", "aac", channels=6)
    samples, remarks = decode_bytes((tmp_path / "x.mp4").read_bytes(), ".mp4")
    assert remarks == ["has 6 channels, which are averaged"]
    assert amplitude_of(samples)[1_000] == pytest.approx(0.5 * 5 / 6, rel=0.1)  # the sixth has no 1 kHz


@needs_av
@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv"])
def test_a_title_in_any_encoding_is_no_fault(tmp_path, suffix):
    for name, title in (("plain", None), ("titled", "Mädchen über Föhr")):
        write_video(tmp_path / f"{name}{suffix}", *KINDS[suffix], title=title)
    assert "Föhr".encode("latin-1") in (tmp_path / f"titled{suffix}").read_bytes()
    np.testing.assert_array_equal(decode(tmp_path / f"titled{suffix}"), decode(tmp_path / f"plain{suffix}"))


@needs_av
def test_a_video_without_sound_says_so(tmp_path):
    write_video(tmp_path / "silent.mp4", "mp4", None, picture=True)
    with pytest.raises(UnreadableAudio, match="has no sound track"):
        decode(tmp_path / "silent.mp4")


@needs_av
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".flv"])
def test_a_video_that_is_cut_off_says_how_much_it_has(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write_video(path, *KINDS[suffix], seconds=3.0)
    content = path.read_bytes()
    assert decode_bytes(content, suffix)[1] == []
    samples, remarks = decode_bytes(content[: len(content) // 2], suffix)
    assert 1.0 < len(samples) / SAMPLE_RATE < 2.0
    assert len(remarks) == 1
    assert remarks[0].startswith(f"ends after {len(samples) / SAMPLE_RATE:.2f} s of the 3.0")


@needs_av
@pytest.mark.parametrize("suffix", [".mp4", ".m4a", ".webm"])
@pytest.mark.parametrize("content", [b"", bytes(1000), b"no sound at all\n" * 40])
def test_what_is_no_video_is_refused(suffix, content):
    with pytest.raises(UnreadableAudio, match="cannot be decoded"):
        decode_bytes(content, suffix)


@needs_av
@pytest.mark.parametrize("suffix", KINDS)
def test_what_is_held_at_a_time_changes_nothing(tmp_path, monkeypatch, suffix):
    write_video(tmp_path / f"x{suffix}", *KINDS[suffix], channels=2)
    at_once = decode(tmp_path / f"x{suffix}")
    monkeypatch.setattr(decoding, "BLOCK", 5_000)
    np.testing.assert_array_equal(decode(tmp_path / f"x{suffix}"), at_once)


@needs_av
def test_a_list_of_files_opens_none(tmp_path, monkeypatch):
    """FFmpeg would read the file that it names."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "secret.aac", "adts", "aac")
    (tmp_path / "list.mp4").write_bytes(b"ffconcat version 1.0\nfile secret.aac\n")
    with pytest.raises(UnreadableAudio, match="cannot be decoded"):
        decode(tmp_path / "list.mp4")


def test_without_pyav_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "can_read_soundtracks", lambda: False)
    (tmp_path / "x.MP4").touch()
    with pytest.raises(UnreadableAudio, match="needs PyAV: python -m pip install av"):
        decode(tmp_path / "x.MP4")
