"""A prepared set is what the copy's files are, whatever happened on the way; and is read as the copy is."""

import concurrent.futures
import dataclasses
import errno
import itertools
import json
import os
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from workbench.audio import decode as decoding
from workbench.audio.decode import decode
from workbench.data import LAYOUTS, fingerprint, load_splits, prepare
from workbench.data.__main__ import main
from workbench.data.clips import DataError
from workbench.data.listing import strictly
from workbench.data.prepared import FAULTS, FILES, REMARKS, is_prepared, open_prepared, verify
from workbench.data_config import Esc50Data

from .small_datasets import identity_of, no_report, parts_of, quiet, write_table

COLUMNS = {"shard", "start", "length", "split", "recording", "digest", "offsets", "classes"}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "CLIPS_PER_SHARD", 8)


def _prepare(copy, folder, **options):
    listing = LAYOUTS["esc50"].read(copy, strictly)
    return prepare.prepare("esc50", listing, copy, folder, **options)


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_set_has_every_clip_of_the_copy(pristine, tmp_path):
    copy, rows = pristine
    header = _prepare(copy, tmp_path / "set", workers=1)
    prepared = open_prepared(tmp_path / "set")
    assert prepared.header == header
    assert header.classes == ("dog", "rain", "helicopter")
    assert header.splits == {f"fold {fold}": 9 for fold in range(1, 6)}
    assert header.samples == prepared.clips.length.sum()
    files = prepared.lines(FILES)
    assert sorted(files) == sorted(f"audio/{row['filename']}" for row in rows)
    row_of = {f"audio/{row['filename']}": row for row in rows}
    waveforms, lengths = prepared.clips.read(np.arange(len(files)))
    classes = prepared.clips.labels.matrix().argmax(axis=1)
    splits = np.array(tuple(header.splits))[prepared.split]
    for number, file in enumerate(files):
        np.testing.assert_array_equal(waveforms[number, : lengths[number]], decode(copy / file))
        assert header.classes[classes[number]] == row_of[file]["category"]
        assert splits[number] == f"fold {row_of[file]['fold']}"
        assert prepared.recording[number] == row_of[file]["src_file"]
    assert len(set(prepared.digest.tolist())) == len(files)  # no two sound the same
    assert (prepared.lines(FAULTS), prepared.lines(REMARKS)) == ([], [])
    names = {path.name for path in (tmp_path / "set").iterdir()}
    shards = {f"audio-{number:06d}.int16" for number in range(6)}
    assert names == shards | {f"{c}.npy" for c in COLUMNS} | {"set.json", FILES, FAULTS, REMARKS}


def test_long_recordings_have_shards_of_their_own(pristine, tmp_path, monkeypatch):
    """So that a few of them use all cores, and not all is lost when one of them is interrupted."""
    copy, _ = pristine
    monkeypatch.setattr(prepare, "CLIPS_PER_SHARD", 256)
    _prepare(copy, tmp_path / "one", workers=1)
    sizes = {f"audio/{path.name}": path.stat().st_size for path in (copy / "audio").iterdir()}
    monkeypatch.setattr(prepare, "BYTES_PER_SHARD", 50_000)
    steps = []
    _prepare(copy, tmp_path / "many", workers=1, progress=lambda done, total: steps.append(done))
    one, many = (open_prepared(tmp_path / name) for name in ("one", "many"))
    assert (one.header.shards, many.header.shards) == (1, len(steps) - 1)
    assert one.header.fingerprint == many.header.fingerprint
    everything = np.arange(45)
    assert all(map(torch.equal, one.clips.read(everything), many.clips.read(everything)))
    files = np.array(many.lines(FILES))
    shards = [files[many.clips.source == number].tolist() for number in range(many.header.shards)]
    for shard, following in itertools.pairwise(shards):
        size = sum(sizes[file] for file in shard)
        assert len(shard) == 1 or size <= 50_000
        assert size + sizes[following[0]] > 50_000


def test_workers_and_interruptions_leave_no_trace(pristine, tmp_path):
    """Ended after any of its shards, and gone on with, it is the set that one run makes."""
    copy, _ = pristine
    _prepare(copy, tmp_path / "whole", workers=1)
    expected = _contents(tmp_path / "whole")
    _prepare(copy, tmp_path / "parallel", workers=2)
    assert _contents(tmp_path / "parallel") == expected

    def end_after(clips):
        def progress(done, total):
            assert total == 45
            if done >= clips:
                raise KeyboardInterrupt

        return progress

    folder = tmp_path / "interrupted"
    for clips in (0, 8, 24):
        with pytest.raises(KeyboardInterrupt):
            _prepare(copy, folder, workers=1, progress=end_after(clips))
        with pytest.raises(DataError, match="prepare the set"):
            open_prepared(folder)
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("audio-*.int16")}
    assert len(made) == 3
    (folder / "audio-000003.int16.1234.tmp").write_bytes(b"half of")  # as a kill leaves it
    (folder / "audio-000009.int16").write_bytes(b"")  # of files that were larger then
    _prepare(copy, folder, workers=1)
    assert _contents(folder) == expected
    assert {name: (folder / name).stat().st_mtime_ns for name in made} == made


@pytest.mark.parametrize("last", ["write_columns", "fingerprint_of"])
def test_a_full_disk_at_the_very_end_loses_nothing(pristine, tmp_path, monkeypatch, capsys, last):
    """The command that is given again decodes nothing again."""
    folder = tmp_path / "set"
    command = ["prepare", "esc50", "--root", str(pristine[0]), "--to", str(folder), "--workers", "1"]

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepare, last, full)
        assert main(command) == 2
    said = capsys.readouterr().err
    assert "No space left" in said
    assert f"{folder}: " in said
    assert "make room there" in said
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("audio-*.int16")}
    assert len(made) == 6
    assert main(command) == 0
    assert {name: (folder / name).stat().st_mtime_ns for name in made} == made
    assert verify(folder) == []


def test_nothing_is_written_beside_the_output(pristine, tmp_path):
    """Not even while it is made: its parent may not be writable."""
    beside = []

    def look(done, total):
        beside.extend(tmp_path.iterdir())
        assert ".lock" in {path.name for path in (tmp_path / "set").iterdir()}

    _prepare(pristine[0], tmp_path / "set", workers=1, progress=look)
    assert set(beside) == {tmp_path / "set"}
    assert not (tmp_path / "set" / ".lock").exists()


def test_a_file_that_changes_while_it_is_read_is_not_taken(pristine, tmp_path, monkeypatch):
    """Its samples would be kept under the hash of others."""
    decode_blocks = prepare.decode_blocks

    def touching(file, suffix, remarks):
        yield from decode_blocks(file, suffix, remarks)
        os.utime(file.fileno(), (1, 1))

    shutil.copytree(pristine[0], tmp_path / "copy")
    monkeypatch.setattr(prepare, "decode_blocks", touching)
    with pytest.raises(DataError, match=r"wav: was changed while it was read"):
        _prepare(tmp_path / "copy", tmp_path / "set", workers=1)


def test_a_copy_that_changed_since_its_fingerprint_is_not_filed_under_it(esc50, tmp_path):
    copy, rows = esc50
    config = Esc50Data(root=str(copy))
    before = fingerprint(config)
    soundfile.write(copy / "audio" / rows[0]["filename"], np.full(16_000, 0.25), 16_000)
    with pytest.raises(DataError, match="files were changed, or could not be read, while they were decoded"):
        load_splits(config, tmp_path / "root", 0, quiet, before)
    assert not any(map(is_prepared, (tmp_path / "root").glob("esc50-*")))
    assert len(load_splits(config, tmp_path / "root", 0, quiet).train) == 27


def test_a_prepared_set_is_refused_where_another_was_planned_with(esc50, tmp_path):
    """On another node, or replaced meanwhile: what is trained on it must not be filed under the first."""
    copy, rows = esc50
    _prepare(copy, tmp_path / "set", workers=1)
    config = Esc50Data(root=str(tmp_path / "set"))
    planned = fingerprint(config)
    assert len(load_splits(config, tmp_path / "root", 0, quiet, planned).train) == 27
    soundfile.write(copy / "audio" / rows[0]["filename"], np.full(16_000, 0.25), 16_000)
    shutil.rmtree(tmp_path / "set")
    _prepare(copy, tmp_path / "set", workers=1)
    with pytest.raises(DataError, match=r"set: is not the set that was planned with \(fingerprint"):
        load_splits(config, tmp_path / "root", 0, quiet, planned)


def test_what_a_kill_or_a_full_disk_left_goes_before_more_is_written(pristine, tmp_path):
    left = tmp_path / "set" / "audio-000000.int16.0123.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half of it")
    seen = []
    _prepare(pristine[0], tmp_path / "set", workers=1, progress=lambda *_: seen.append(left.exists()))
    assert seen
    assert not any(seen)


def test_an_error_names_some_faults_of_many(esc50, tmp_path):
    copy, rows = esc50
    for row in rows:
        (copy / "audio" / row["filename"]).unlink()
    with pytest.raises(DataError, match="not one of its recordings is left") as error:
        _prepare(copy, tmp_path / "set", workers=1)
    *named, last = str(error.value).splitlines()[1:]
    assert len(named) == prepare.LISTED_FAULTS
    assert last == f"  and {len(rows) - prepare.LISTED_FAULTS} more"


def test_a_decoder_that_dies_is_told_with_where_it_was(pristine, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "spawned_pool", _Dying)
    with pytest.raises(DataError, match=r"a process that decodes died(.|\n)*\n  audio/.* to audio/") as error:
        _prepare(pristine[0], tmp_path / "set", workers=2)
    assert len(str(error.value).splitlines()) == 4  # of six shards, the two that were under way


class _Dying(concurrent.futures.Executor):
    def __init__(self, workers, threads):
        pass

    def map(self, work, jobs):
        raise BrokenProcessPool


def test_a_file_that_changed_meanwhile_is_decoded_again(esc50, tmp_path):
    copy, rows = esc50
    folder = tmp_path / "set"

    def end(done, total):
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _prepare(copy, folder, workers=1, progress=end)
    changed = copy / "audio" / rows[0]["filename"]
    soundfile.write(changed, np.full(16_000, 0.25), 16_000)
    _prepare(copy, folder, workers=1)
    _prepare(copy, tmp_path / "anew", workers=1)
    assert _contents(folder) == _contents(tmp_path / "anew")
    first = open_prepared(folder).clips.read(np.array([0]))[0][0]
    assert first.tolist() == [round(0.25 * 32767)] * 16_000


def test_a_prepared_set_reads_as_its_copy_does(pristine, tmp_path):
    copy, _ = pristine
    _prepare(copy, tmp_path / "set", workers=1)
    of_copy, of_set = (Esc50Data(root=str(root), test_fold=2) for root in (copy, tmp_path / "set"))
    assert fingerprint(of_set) == fingerprint(of_copy)
    ours = load_splits(of_set, tmp_path / "nothing here", 3, no_report)
    theirs = load_splits(of_copy, tmp_path / "root", 3, quiet)
    for first, second in zip(parts_of(ours).values(), parts_of(theirs).values(), strict=True):
        assert first.names.tolist() == second.names.tolist()
        np.testing.assert_array_equal(first.labels.matrix(), second.labels.matrix())
        everything = np.arange(len(first))
        assert all(map(torch.equal, first.read(everything), second.read(everything)))
    assert not (tmp_path / "nothing here").exists()


def test_clips_that_follow_each_other_share_the_index(pristine, tmp_path):
    """Workers have it once, in the page cache."""
    _prepare(pristine[0], tmp_path / "set", workers=1)
    prepared = open_prepared(tmp_path / "set")
    together, apart = prepared.take(np.arange(9, 27)), prepared.take(np.array([9, 11]))
    for name in ("source", "start", "length", "names"):
        assert np.shares_memory(getattr(together, name), getattr(prepared.clips, name))
    assert identity_of(together)[:3:2] == identity_of(apart)


def _plant(copy, rows):
    """Every way in which a file can be wrong, and what is said of it."""
    audio, names = copy / "audio", [row["filename"] for row in rows]
    wavs = [name for name in names if name.endswith(".wav")]
    mp3 = next(name for name in names if name.endswith(".mp3"))
    noise = 0.1 * np.random.default_rng(0).standard_normal(30_000)
    (audio / wavs[0]).write_bytes(b"")
    soundfile.write(audio / wavs[1], np.full(8_000, np.nan, np.float32), 44_100, subtype="FLOAT")
    (audio / wavs[2]).write_bytes(b"not audio at all" * 100)
    (audio / wavs[3]).unlink()
    soundfile.write(audio / wavs[4], np.tile(noise[:, None], 8), 44_100)
    soundfile.write(audio / "x.flac", noise, 44_100)
    (audio / "x.flac").replace(audio / wavs[5])
    soundfile.write(audio / wavs[6], noise, 44_100)
    for name in (mp3, wavs[6]):
        content = (audio / name).read_bytes()
        (audio / name).write_bytes(content[: len(content) // 2])
    faults = {
        wavs[0]: "cannot be decoded",
        wavs[1]: "NaN",
        wavs[2]: "cannot be decoded",
        wavs[3]: "not there",
    }
    remarks = {
        wavs[4]: "has 8 channels",
        wavs[5]: "is FLAC",
        mp3: "s that it announces",
        wavs[6]: "ends after 0.34 s of the 0.68 s",
    }
    return faults, remarks


def test_every_fault_is_named_and_none_is_fatal(esc50, tmp_path):
    copy, rows = esc50
    faults, remarks = _plant(copy, rows)
    _prepare(copy, tmp_path / "set", table_faults=["meta/esc50.csv, line 99: cut short"], workers=1)
    prepared = open_prepared(tmp_path / "set")
    assert prepared.lines(FAULTS)[0] == "meta/esc50.csv, line 99: cut short"
    for name, expected in ((FAULTS, faults), (REMARKS, remarks)):
        said = dict(line.split(": ", 1) for line in prepared.lines(name) if line.startswith("audio/"))
        assert set(said) == {f"audio/{file}" for file in expected}
        for file, words in expected.items():
            assert words in said[f"audio/{file}"]
    assert prepared.header.num_clips == len(rows) - len(faults)
    left_out = load_splits(Esc50Data(root=str(tmp_path / "set")), tmp_path, 0, no_report).left_out
    assert {f"audio/{file}" for file in faults} < set(left_out)
    assert fingerprint(Esc50Data(root=str(copy))) == prepared.header.fingerprint


def test_a_file_that_its_decoder_cannot_bear_is_a_fault_like_others(esc50, tmp_path, monkeypatch):
    """Errors of the output are none: they end the work."""
    copy, rows = esc50
    odd = next(row["filename"] for row in rows if row["filename"].endswith(".flac"))
    (copy / "audio" / odd).write_bytes(b"odd")
    open_sound = decoding._open_sound

    def opening(file, suffix):
        if file.read() == b"odd":
            raise ZeroDivisionError("no rate")
        file.seek(0)
        return open_sound(file, suffix)

    monkeypatch.setattr(decoding, "_open_sound", opening)
    _prepare(copy, tmp_path / "set", workers=1)
    expected = [f"audio/{odd}: cannot be decoded (ZeroDivisionError: no rate)"]
    assert open_prepared(tmp_path / "set").lines(FAULTS) == expected

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        _prepare(copy, tmp_path / "another", workers=1)


def test_a_file_that_may_not_be_read_is_a_fault_like_others(esc50, tmp_path, monkeypatch):
    """For the fingerprint of its copy, too: tests may be run by root, who may read all."""
    copy, rows = esc50
    locked = copy / "audio" / rows[7]["filename"]
    path_open, path_stat = Path.open, Path.stat

    def refusing(real):
        def call(path, *arguments, **options):
            if path == locked:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *arguments, **options)

        return call

    said = [f"audio/{locked.name}: cannot be read (Permission denied)"]
    config = Esc50Data(root=str(copy), skip_unreadable=True)
    for number, (name, real) in enumerate((("open", path_open), ("stat", path_stat))):
        with monkeypatch.context() as patch:
            patch.setattr(os, "sched_getaffinity", lambda process: {0})  # in this process alone
            patch.setattr(Path, "open", refusing(path_open))
            patch.setattr(Path, name, refusing(real))  # of a folder that may not be entered, not even that
            header = _prepare(copy, tmp_path / f"set {number}", workers=1)
            assert open_prepared(tmp_path / f"set {number}").lines(FAULTS) == said
            assert fingerprint(config) == header.fingerprint
            splits = load_splits(config, tmp_path / f"root {number}", 0, quiet)
        assert splits.left_out == (f"audio/{locked.name}",)


def test_a_file_that_turns_out_bad_late_leaves_nothing(esc50, tmp_path, monkeypatch):
    """What came of it before the fault is not heard before the next clip."""
    copy, rows = esc50
    bad = next(row["filename"] for row in rows if row["filename"].endswith(".wav"))
    noise = 0.1 * np.random.default_rng(0).standard_normal(30_000).astype(np.float32)
    noise[-1] = np.nan
    soundfile.write(copy / "audio" / bad, noise, 16_000, subtype="FLOAT")
    monkeypatch.setattr(decoding, "BLOCK", 1_000)
    _prepare(copy, tmp_path / "set", workers=1)
    prepared = open_prepared(tmp_path / "set")
    assert prepared.lines(FAULTS) == [f"audio/{bad}: holds NaN or infinity"]
    assert verify(tmp_path / "set") == []
    assert len(prepared.lines(FILES)) == len(rows) - 1
    for number, file in enumerate(prepared.lines(FILES)):
        waveform, length = prepared.clips.read(np.array([number]))
        np.testing.assert_array_equal(waveform[0, : length[0]], decode(copy / file))


def test_clips_that_sound_the_same_have_the_same_digest(esc50, tmp_path):
    """In whatever format."""
    copy, rows = esc50
    ramp = np.arange(-4_000, 4_000, dtype=np.int16)
    for row, extension in ((rows[0], "wav"), (rows[20], "flac")):
        path = copy / "audio" / row["filename"]
        path.unlink()
        row["filename"] = f"{path.stem}.{extension}"
        soundfile.write(copy / "audio" / row["filename"], ramp, 16_000)
    write_table(copy, rows)
    _prepare(copy, tmp_path, workers=1)
    prepared = open_prepared(tmp_path)
    digests, counts = np.unique(prepared.digest, return_counts=True)
    same = np.flatnonzero(prepared.digest == digests[counts == 2])
    files = np.array(prepared.lines(FILES))[same]
    assert set(files) == {f"audio/{rows[0]['filename']}", f"audio/{rows[20]['filename']}"}


def test_paths_of_a_table_do_not_leave_the_copy(esc50, tmp_path):
    copy, _ = esc50
    listing = LAYOUTS["esc50"].read(copy, strictly)
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, np.full(16_000, 0.5), 16_000)
    for file in ("../secret.wav", str(secret), "audio/../../secret.wav"):
        assert (copy / file).exists()
        rows = [listing.rows[0], listing.rows[1]._replace(file=file)]
        folder = tmp_path / file.replace("/", "_")
        header = prepare.prepare("esc50", dataclasses.replace(listing, rows=rows), copy, folder, workers=1)
        assert header.num_clips == 1
        assert open_prepared(folder).lines(FAULTS) == [f"{file}: is not there"]


def test_audio_that_is_cut_short_is_not_heard_as_silence(pristine, tmp_path):
    folder = tmp_path / "set"
    _prepare(pristine[0], folder, workers=1)
    shard = folder / "audio-000001.int16"
    shard.write_bytes(shard.read_bytes()[:-2])
    clips = open_prepared(folder).clips
    clips.read(np.array([14]))
    with pytest.raises(DataError, match=r"audio-000001\.int16: is cut short; prepare the set again"):
        clips.read(np.array([15]))


def test_verify_names_what_is_not_as_it_was_written(pristine, tmp_path):
    folder = tmp_path / "set"
    _prepare(pristine[0], folder, workers=1)
    assert verify(folder) == []
    shard = folder / "audio-000002.int16"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    (folder / "length.npy").unlink()
    assert sorted(verify(folder)) == [
        f"{shard}: not as it was written",
        f"{folder / 'length.npy'}: not there",
    ]
    with pytest.raises(DataError, match="its index is damaged"):
        open_prepared(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw | {"format": 0}, "format must be 1, is 0"),
        (lambda raw: [], "format must be 1"),
        (lambda raw: raw | {"splits": {"fold 1": 3}}, "has not 3 clips"),
        (lambda raw: raw | {"sha256": {"../x": ""}}, "outside of its folder"),
        (lambda raw: {"format": raw["format"]}, "set.json: layout: is required; prepare the set again"),
        (lambda raw: raw | {"more": 1}, "set.json: more: unknown key"),
    ],
)
def test_a_header_that_cannot_be_is_refused(pristine, tmp_path, change, message):
    _prepare(pristine[0], tmp_path, workers=1)
    path = tmp_path / "set.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=message):
        open_prepared(tmp_path)


def test_another_layouts_set_is_refused(pristine, tmp_path):
    _prepare(pristine[0], tmp_path / "set", workers=1)
    config = Esc50Data(root=str(tmp_path / "set"), subset="esc10")
    with pytest.raises(DataError, match="is a prepared esc50, and data asks for esc10"):
        fingerprint(config)


def test_a_shard_that_is_gone_is_named(pristine, tmp_path):
    _prepare(pristine[0], tmp_path / "set", workers=1)
    shutil.move(tmp_path / "set" / "audio-000001.int16", tmp_path)
    splits = load_splits(Esc50Data(root=str(tmp_path / "set")), tmp_path, 0, no_report)
    with pytest.raises(DataError, match=r"audio-000001\.int16: cannot be read"):
        splits.validation.read(np.arange(len(splits.validation)))
