"""Kinetics-700's layout: the tables of its publisher, and clips as videos or as sound extracted from them."""

import numpy as np
import pytest

from workbench.data import LAYOUTS, load_splits, prepare
from workbench.data.clips import DataError
from workbench.data.listing import strictly
from workbench.data.prepared import FAULTS, open_prepared
from workbench.data_config import Kinetics700Data

from .small_datasets import no_report, quiet
from .small_kinetics700 import (
    LABELS,
    clip_name,
    kinetics700_rows,
    write_kinetics700,
    write_kinetics700_table,
)
from .small_videos import amplitude_of, needs_av, write_video


def _read(root, fault=strictly):
    return LAYOUTS["kinetics700"].read(root, fault)


def _faults(root):
    faults = []
    listing = _read(root, lambda where, reason: faults.append(f"{where}: {reason}"))
    return listing, faults


@pytest.fixture
def copy(tmp_path):
    """A copy without audio, and the rows of its tables."""
    rows = {split: kinetics700_rows(split, 6) for split in ("train", "validate")}
    for split, of_split in rows.items():
        write_kinetics700_table(tmp_path / "k700" / f"{split}.csv", of_split)
    return tmp_path / "k700", rows


def test_rows_are_what_the_tables_say(copy):
    root, rows = copy
    listing = _read(root)
    assert listing.classes == LABELS
    assert listing.single_label
    found = {row.recording: (row.split, listing.classes[row.classes[0]]) for row in listing.rows}
    assert found == {
        row["youtube_id"]: (split, row["label"]) for split, of_split in rows.items() for row in of_split
    }


def test_tables_of_the_published_size_lose_nothing(tmp_path):
    """34,125 validation clips of Kinetics-700-2020 (fiftyone's documentation of it), and as many others."""
    for split, letter in (("train", "t"), ("validate", "v")):
        rows = [
            {
                "label": f"action {number % 700:03d}",
                "youtube_id": f"{letter}{number:010d}",
                "time_start": "0",
                "time_end": "10",
                "split": split,
            }
            for number in range(34_125)
        ]
        write_kinetics700_table(tmp_path / f"{split}.csv", rows)
    listing = _read(tmp_path)
    assert listing.classes == tuple(f"action {number:03d}" for number in range(700))
    for split in ("train", "validate"):
        counts = np.bincount([row.classes[0] for row in listing.rows if row.split == split], minlength=700)
        assert counts.sum() == 34_125
        assert set(counts) == {48, 49}


def test_a_training_label_that_hardly_a_clip_has_is_remarked(tmp_path):
    """A typing error makes a class more."""
    rows = kinetics700_rows("train", 90)
    write_kinetics700_table(tmp_path / "train.csv", rows)
    write_kinetics700_table(tmp_path / "validate.csv", kinetics700_rows("validate", 3))
    assert _read(tmp_path).remarks == []
    rows[0]["label"] = "abseilng"
    write_kinetics700_table(tmp_path / "train.csv", rows)
    expected = f"{tmp_path / 'train.csv'}: label 'abseilng' stands in 1 of 90 lines; is it mistyped?"
    assert _read(tmp_path).remarks == [expected]


@pytest.mark.parametrize(
    "name",
    [
        "{split}/{folder}/{clip}.mp4",
        "{split}/{clip}.mp4",
        "{folder}/{id}.mkv",
        "{id}.webm",
        "audio/{clip}.wav",
        "audio/{id}.flac",
    ],
)
def test_clips_are_found_as_videos_or_sound_in_any_folder(copy, name):
    root, rows = copy
    expected = {}
    for split, of_split in rows.items():
        for row in of_split:
            folder = row["label"].replace(" ", "_")
            file = name.format(split=split, folder=folder, clip=clip_name(row), id=row["youtube_id"])
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
            expected[row["youtube_id"]] = file
    assert {row.recording: row.file for row in _read(root).rows} == expected


def test_extracted_sound_goes_before_the_video(copy):
    root, rows = copy
    clip = clip_name(rows["train"][0])
    for file in (f"a/{clip}.mp4", f"b/{clip}.flac", f"c/{clip}.webm"):
        (root / file).parent.mkdir()
        (root / file).touch()
    assert f"b/{clip}.flac" in {row.file for row in _read(root).rows}


def test_tables_may_lie_in_annotations_and_be_called_as_cvdf_does(copy):
    root, rows = copy
    expected = _read(root)
    for split, name in (("train", "train"), ("validate", "val")):
        (root / f"{split}.csv").unlink()
        called = [{**row, "split": name} for row in rows[split]]
        write_kinetics700_table(root / "annotations" / f"{name}.csv", called)
    assert _read(root) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"youtube_id": "../../etc/x"}, "'../../etc/x' is no id of a YouTube video"),
        ({"time_start": ""}, "start and end must be seconds"),
        ({"time_end": "1"}, "start and end must be seconds"),
        ({"split": "train"}, "split must be validate, as the table's name says, is 'train'"),
        ({"label": "unheard of"}, "label 'unheard of' is none of the training clips"),
        ({"label": ""}, "label '' is none of the training clips"),
    ],
)
def test_a_faulty_line_is_named_and_left_out(copy, change, said):
    root, rows = copy
    faulty = [*rows["validate"][:2], rows["validate"][2] | change, *rows["validate"][3:]]
    write_kinetics700_table(root / "validate.csv", faulty)
    listing, faults = _faults(root)
    assert len(listing.rows) == 11
    assert len(faults) == 1
    assert faults[0].startswith(f"{root / 'validate.csv'}, line 4: ")
    assert said in faults[0]
    with pytest.raises(DataError, match=r"validate\.csv, line 4"):
        _read(root)


def test_a_video_of_both_splits_tests_alone(copy):
    root, rows = copy
    video = rows["validate"][1]["youtube_id"]
    write_kinetics700_table(root / "train.csv", [*rows["train"], rows["train"][0] | {"youtube_id": video}])
    listing, faults = _faults(root)
    assert [row.split for row in listing.rows if row.recording == video] == ["validate"]
    assert faults == [
        f"{root / 'train.csv'}, line 8: video {video} is in validate.csv too, and left out here"
    ]


def test_clips_of_one_video_are_told_apart_by_their_starts(copy):
    root, rows = copy
    first = rows["train"][0]
    second = first | {"time_start": "50", "time_end": "60", "label": LABELS[2]}
    write_kinetics700_table(root / "train.csv", [*rows["train"], second])
    for row in (first, second):
        (root / f"{clip_name(row)}.wav").touch()
    found = {row.file: row.classes for row in _read(root).rows if row.recording == first["youtube_id"]}
    assert found == {f"{clip_name(first)}.wav": (0,), f"{clip_name(second)}.wav": (2,)}
    for row in (first, second):
        (root / f"{clip_name(row)}.wav").unlink()
    (root / f"{first['youtube_id']}.wav").touch()  # which of the two?
    assert len(_faults(root)[1]) == 1


def test_a_missing_table_is_named(copy):
    root, _ = copy
    (root / "validate.csv").unlink()
    with pytest.raises(DataError, match=r"validate\.csv: is not there"):
        _read(root)
    (root / "train.csv").unlink()
    with pytest.raises(DataError, match=r"needs train\.csv and validate\.csv"):
        _faults(root)


def test_the_published_validation_clips_test(tmp_path):
    rows = write_kinetics700(tmp_path / "k700")
    config = Kinetics700Data(root=str(tmp_path / "k700"), validation_share=0.25)
    splits = load_splits(config, tmp_path / "prepared", 0, quiet)
    assert set(splits.test.names) == {row["youtube_id"] for row in rows["validate"]}
    train, validation = set(splits.train.names), set(splits.validation.names)
    assert train | validation == {row["youtube_id"] for row in rows["train"]}
    assert train
    assert validation
    assert not train & validation
    assert splits.classes == LABELS
    assert splits.single_label


def test_videos_without_pyav_are_refused_before_anything_is_prepared(tmp_path, monkeypatch):
    """Else the set would be finished without them, under the same fingerprint."""
    root = tmp_path / "k700"
    rows = write_kinetics700(root)
    sound = next(root.rglob(f"{clip_name(rows['train'][0])}.flac"))
    sound.replace(sound.with_suffix(".mp4"))
    monkeypatch.setattr(prepare, "can_read_soundtracks", lambda: False)
    with pytest.raises(
        DataError, match=r"\.mp4: is a video or AAC, which needs PyAV: python -m pip install av"
    ):
        prepare.prepare("kinetics700", _read(root), root, tmp_path / "set", workers=1)
    assert not list((tmp_path / "set").iterdir())


def test_missing_videos_need_no_pyav(tmp_path, monkeypatch):
    root = tmp_path / "k700"
    rows = write_kinetics700(root)
    next(root.rglob(f"{clip_name(rows['train'][0])}.flac")).unlink()
    monkeypatch.setattr(prepare, "can_read_soundtracks", lambda: False)
    prepare.prepare("kinetics700", _read(root), root, tmp_path / "set", workers=1)
    prepared = open_prepared(tmp_path / "set")
    assert prepared.lines(FAULTS) == [f"train/{clip_name(rows['train'][0])}.mp4: is not there"]
    assert prepared.header.splits == {"train": 23, "validate": 9}
    config = Kinetics700Data(root=str(tmp_path / "set"), validation_share=0.25)
    assert load_splits(config, tmp_path, 0, no_report).left_out == (
        f"train/{clip_name(rows['train'][0])}.mp4",
    )


@needs_av
def test_videos_are_prepared_and_those_without_sound_counted(tmp_path):
    root = tmp_path / "k700"
    rows = {"train": kinetics700_rows("train", 4), "validate": kinetics700_rows("validate", 3)}
    for split, of_split in rows.items():
        write_kinetics700_table(root / f"{split}.csv", of_split)
        (root / split).mkdir()
        for row in of_split:
            write_video(root / split / f"{clip_name(row)}.mp4", "mp4", "aac", seconds=0.5)
    silent = root / "train" / f"{clip_name(rows['train'][1])}.mp4"
    write_video(silent, "mp4", None, picture=True)
    header = prepare.prepare("kinetics700", _read(root), root, tmp_path / "set", workers=1)
    assert header.splits == {"train": 3, "validate": 3}
    prepared = open_prepared(tmp_path / "set")
    assert prepared.lines(FAULTS) == [f"train/{silent.name}: has no sound track"]
    waveforms, _ = prepared.clips.read(np.arange(6))
    for waveform in waveforms.numpy():
        assert amplitude_of(waveform).argmax() == 1_000
