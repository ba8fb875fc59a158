"""An MP3 or Ogg file is decoded as far as it goes, and what is cut off is remarked on."""

import functools
import io

import numpy as np
import pytest
import soundfile

from workbench.audio.decode import decode_blocks, decoding_version
from workbench.audio.framing import mpeg_frames

from .small_videos import needs_av, write_video

RATE = 16_000
DELAY = 576 + 529  # samples of LAME and of every decoder, which the header has left out


@functools.cache
def _mp3(mode="CONSTANT", rate=RATE, channels=1):
    """3 s, the first of them all but silent: at a variable bitrate its frames are small."""
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, (3 * rate, channels))
    samples[:rate] *= 1e-3
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.3)
    return file.getvalue()


def _bare(content):
    """Without the frame that says how many there are."""
    return content[mpeg_frames(io.BytesIO(content)).begin :]


def _decode(content, suffix=".mp3"):
    """Samples, and remarks."""
    remarks = []
    return np.concatenate(list(decode_blocks(io.BytesIO(content), suffix, remarks))), remarks


def _known(content):
    """What libsndfile gives."""
    return np.round(soundfile.read(io.BytesIO(content), dtype="float32")[0] * 32767)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_variable_bitrate_without_header_is_decoded_whole(channels):
    content = _mp3("VARIABLE", channels=channels)
    expected = _decode(content)[0]
    bare = _bare(content)
    assert len(_known(bare)) < 0.95 * len(expected)  # it guesses by the first frame
    samples, remarks = _decode(bare)
    assert remarks == []
    np.testing.assert_allclose(samples[DELAY:][: len(expected)].astype(int), expected, rtol=0, atol=1)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000])  # MPEG 2.5, 2 and 1
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_frames_are_as_many_as_the_header_counts(rate, mode):
    content = _mp3(mode, rate)
    found = mpeg_frames(io.BytesIO(content))
    assert found.count == found.announced
    assert (found.end, found.is_cut) == (len(content), False)
    assert 0 <= found.samples - 3 * rate - DELAY < 3 * found.samples_each


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_what_was_whole_stays_as_it_was(mode):
    content = _mp3(mode)
    whole = [content, _bare(content)] if mode == "CONSTANT" else [content]
    for file in whole:
        samples, remarks = _decode(file)
        assert remarks == []
        np.testing.assert_allclose(samples.astype(int), _known(file), rtol=0, atol=1)


def test_a_file_that_is_cut_within_a_frame_is_remarked_on():
    bare = _bare(_mp3())
    frame = mpeg_frames(io.BytesIO(bare)).first_bytes
    samples, remarks = _decode(bare[: 40 * frame + 100])
    assert len(samples) == 40 * 576
    assert remarks == ["is cut off after 1.44 s"]
    samples, remarks = _decode(_bare(_mp3("VARIABLE"))[:-50])
    assert remarks == [f"is cut off after {len(samples) / RATE:.2f} s"]
    assert len(samples) > 3 * RATE
    (remark,) = _decode(_mp3()[: len(bare) // 2])[1]
    assert "that it announces" in remark  # its header has a length


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_tags_are_no_sound(mode):
    bare = _bare(_mp3(mode))
    picture = bare[:1_000]  # in a tag any bytes may stand
    tag = b"ID3\x03\0\0" + bytes([0, 0, 1_000 >> 7, 1_000 & 0x7F]) + picture
    expected = _decode(bare)[0]
    for tagged in (tag + bare, bare + b"TAG" + bytes(125), bare + b"APETAGEX" + bytes(300)):
        samples, remarks = _decode(tagged)
        assert remarks == []
        np.testing.assert_array_equal(samples, expected)


def test_files_behind_each_other_are_heard_all():
    content = _mp3()
    samples, remarks = _decode(content + content)
    assert remarks == []
    assert len(samples) > 6 * RATE


def test_another_suffix_decodes_as_before_and_says_what_is_lost():
    """Its set's fingerprint does not tell that it would now be another sound."""
    bare = _bare(_mp3("VARIABLE"))
    samples, remarks = _decode(bare, ".wav")
    assert len(samples) == len(_known(bare))
    assert remarks[0] == "is MP3, whatever its name says"
    assert remarks[1].startswith(f"ends after {len(samples) / RATE:.2f} s of the 3.")


def test_only_sets_with_such_files_are_other_ones():
    assert decoding_version(["a/x.wav", "y.FLAC", "mp3"]) == 3
    assert decoding_version(["a/x.wav", "y.MP3"]) == 4


@needs_av
def test_layer_2_has_frames_of_its_own(tmp_path):
    write_video(tmp_path / "x.mp2", "mp2", "mp2", seconds=2.0)
    content = (tmp_path / "x.mp2").read_bytes()
    found = mpeg_frames(io.BytesIO(content))
    assert (found.samples_each, found.end, found.is_cut) == (1152, len(content), False)
    assert _decode(content)[1] == []
    assert _decode(content[:-10])[1][0].startswith("is cut off after 1.9")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_without_its_last_page_is_remarked_on(subtype):
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 5 * RATE)
    soundfile.write(file, noise, RATE, format="OGG", subtype=subtype)
    content = file.getvalue()
    assert _decode(content, ".ogg")[1] == []
    last = content.rindex(b"OggS")
    samples, remarks = _decode(content[:last], ".ogg")
    assert remarks == [f"is cut off after {len(samples) / RATE:.2f} s"]
    assert _decode(content[:-1], ".ogg")[1]
