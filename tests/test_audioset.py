"""AudioSet's layout: Google's tables, and clips under any of the usual names."""

import os
import random

import numpy as np
import pytest
import soundfile

from workbench.data import LAYOUTS, load_splits
from workbench.data.clips import DataError
from workbench.data.listing import strictly
from workbench.data.prepare import prepare
from workbench.data.prepared import FAULTS, REMARKS, open_prepared
from workbench.data.recordings import Columns
from workbench.data.youtube import ClipFiles
from workbench.data_config import AudioSetData

from .small_audioset import CLASSES, NAMINGS, segments, write_audioset, write_clip, write_tables
from .small_datasets import no_report, quiet

SIZES = {"balanced train": 22_160, "eval": 20_371, "unbalanced train": 2_041_789}  # by the tables' own heads


def _read(root, fault=strictly):
    return LAYOUTS["audioset"].read(root, fault)


def _faults(root):
    faults = []
    listing = _read(root, lambda where, reason: faults.append(f"{where}: {reason}"))
    return listing, faults


def _table(root, split="balanced_train"):
    return root / f"{split}_segments.csv"


@pytest.fixture
def copy(tmp_path):
    """A copy without audio, and its rows."""
    rows = segments({"eval": 4, "balanced train": 6, "unbalanced train": 5})
    write_tables(tmp_path / "AudioSet", rows)
    return tmp_path / "AudioSet", rows


@pytest.fixture(scope="module")
def with_audio(tmp_path_factory):
    root = tmp_path_factory.mktemp("audioset")
    rows = write_audioset(root / "AudioSet")
    prepare("audioset", _read(root / "AudioSet"), root / "AudioSet", root / "set", workers=1)
    return root / "set", rows


def test_rows_are_what_the_tables_say(copy):
    root, rows = copy
    listing = _read(root)
    assert listing.classes == tuple(CLASSES.values())
    assert not listing.single_label
    found = {
        row.recording: (row.split, {listing.classes[number] for number in row.classes})
        for row in listing.rows
    }
    assert found == {video: (split, {CLASSES[mid] for mid in mids}) for split, video, _, mids in rows}
    for row in listing.rows:
        assert list(row.classes) == sorted(set(row.classes))


def test_tables_of_the_published_size_give_the_published_counts(tmp_path):
    """All of eval and balanced; of the two million others a hundredth, for a test's time."""
    counts = {**SIZES, "unbalanced train": SIZES["unbalanced train"] // 100}
    classes = {f"/m/{number:04d}": f"Class {number}, of 527" for number in range(527)}
    rows = segments(counts)
    mids = list(classes)
    rows = [(*row[:3], [mids[n % 527], mids[(n + 1) % 527]]) for n, row in enumerate(rows)]
    write_tables(tmp_path, rows, classes)
    listing = _read(tmp_path)
    assert len(listing.classes) == 527
    splits = [row.split for row in listing.rows]
    assert {split: splits.count(split) for split in counts} == counts
    used = np.bincount([number for row in listing.rows for number in row.classes], minlength=527)
    assert used.sum() == 2 * len(rows)
    assert used.min() >= 2 * (len(rows) // 527)


def test_a_table_without_some_of_the_segments_that_its_head_announces_is_remarked(copy):
    root, _ = copy
    assert _read(root).remarks == []
    whole = _table(root).read_text().splitlines(keepends=True)
    _table(root).write_text("".join(whole[:-2]))
    assert _read(root).remarks == [f"{_table(root)}: has 4 segments, and its head announces 6"]


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("folder", ["", "audios/", "unbalanced_train_segments/part07/"])
def test_clips_are_found_under_every_usual_name(copy, naming, folder):
    root, rows = copy
    expected = {}
    for _, video, start, _ in rows:
        expected[video] = folder + naming.format(video, start, start + 10)
        path = root / expected[video]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert {row.recording: row.file for row in _read(root).rows} == expected


@pytest.mark.parametrize(
    "name", ["{}-{:.0f}-{:.0f}.wav", "{}_{:.1f}_{:.1f}_cut.wav", "{}.f140.m4a", "Y{}_{:.0f}.f251.webm"]
)
def test_other_names_of_a_clip_are_found_behind_the_usual_ones(copy, name):
    root, rows = copy
    for path in root.glob("*/*.wav"):
        path.unlink()
    for number, (_, video, start, _) in enumerate(rows):
        (root / name.format(video, start, start + 10)).touch()
        if number % 2:
            usual = f"{video}_{start:.0f}.mp4" if "{:" in name else f"{video}.mp4"
            (root / usual).touch()
    found = {row.recording: row.file for row in _read(root).rows}
    assert len(found) == len(rows)
    assert [found[video].endswith(".mp4") for _, video, _, _ in rows] == [
        bool(n % 2) for n in range(len(rows))
    ]


@pytest.mark.parametrize("stem", ["{}-1", "{}-x-y", "x{}-30-40", "{}.140", "{}_cut", "{}-30-40-50"])
def test_what_may_be_another_thing_is_no_name_of_a_clip(tmp_path, stem):
    (tmp_path / f"{stem.format('a-1-2_3-4-5')}.wav").touch()
    files = ClipFiles(tmp_path)
    assert files.find("a-1-2_3-4-5", "30") is None


def test_hyphens_of_an_id_are_none_of_its_segment(tmp_path):
    for name in ("Ya-1-2_3-4-5", "a-1-2_3-4-5-6-7", "Y-1-2_3-4-5-30-40"):
        (tmp_path / f"{name}.wav").touch()
    files = ClipFiles(tmp_path)
    assert files.find("a-1-2_3-4-5", "6.000") == "a-1-2_3-4-5-6-7.wav"
    assert files.find("a-1-2_3-4-5", "8") == "Ya-1-2_3-4-5.wav"
    assert files.find("Y-1-2_3-4-5", "30") == "Y-1-2_3-4-5-30-40.wav"


def test_a_clip_of_another_second_is_not_the_clip(copy):
    """As AudioSet's strong labels have them, of the same videos."""
    root, rows = copy
    (_, video, start, _), *_ = rows
    (root / f"{video}_{start + 7:.3f}.wav").touch()
    (root / f"{video}_{start * 1000 + 7000:.0f}_{start * 1000 + 17000:.0f}.wav").touch()
    listing = _read(root)
    assert [row.file for row in listing.rows if row.recording == video] == [f"eval_segments/Y{video}.wav"]
    (root / f"{video}.wav").touch()
    assert [row.file for row in _read(root).rows if row.recording == video] == [f"{video}.wav"]


def test_rows_do_not_depend_on_the_order_of_lines_or_of_folders(copy, monkeypatch):
    root, rows = copy
    for number, (_, video, start, _) in enumerate(rows):
        write_clip(root / "Speech" / f"{video}_{start:.0f}.wav", number)
        write_clip(root / "Music" / f"{video}_{start:.0f}.wav", number)  # as some tools do: a copy a label
        write_clip(root / "Music" / f"{video}_{start:.0f}.flac", number)
    before = sorted(_read(root).rows)
    assert {row.file.partition("/")[0] for row in before} == {"Music"}
    random.Random(0).shuffle(rows)
    write_tables(root, rows)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path):
            self._entries = list(scandir(path))[::-1]

        def __enter__(self):
            return iter(self._entries)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert sorted(_read(root).rows) == before


def test_links_are_followed_and_end(copy, tmp_path):
    """Audio often lies on another disk."""
    root, rows = copy
    for number, (_, video, *_) in enumerate(rows):
        write_clip(tmp_path / "disk" / f"Y{video}.wav", number)
    (tmp_path / "disk" / "back").symlink_to(root)
    (root / "audios").symlink_to(tmp_path / "disk")
    assert {row.file for row in _read(root).rows} == {f"audios/Y{video}.wav" for _, video, *_ in rows}


def test_tables_may_lie_in_metadata_with_marks_and_line_ends_of_windows(copy):
    root, _ = copy
    expected = _read(root)
    (root / "metadata").mkdir()
    for table in root.glob("*.csv"):
        text = table.read_text().replace("\n", "\r\n")
        (root / "metadata" / table.name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        table.unlink()
    assert _read(root) == expected


BALANCED = "balanced_train_segments.csv, line"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('short, 0.000, 10.000, "/m/04rlf"', "'short' is no id of a YouTube video"),
        ('../../../a/, 0.000, 10.000, "/m/04rlf"', "is no id of a YouTube video"),
        ('abcdefghijk, ten, 20.000, "/m/04rlf"', "start and end must be seconds"),
        ('abcdefghijk, 10.000, 10.000, "/m/04rlf"', "start and end must be seconds"),
        ('abcdefghijk, -10.000, 10.000, "/m/04rlf"', "start and end must be seconds"),
        ('abcdefghijk, 0.000, 10.000, "/m/04rlf,/m/none"', "label '/m/none' is not in class_labels_indices"),
        ('abcdefghijk, 0.000, 10.000, ""', "label '' is not in class_labels_indices"),
        ("abcdefghijk, 0.000", "must have 4 cells, has 2; is the line cut short?"),
    ],
)
def test_a_faulty_line_is_named_and_left_out(copy, line, said):
    root, rows = copy
    before = _table(root).read_text().splitlines()
    _table(root).write_text("\n".join([*before[:5], line, *before[5:]]) + "\n")
    listing, faults = _faults(root)
    assert len(listing.rows) == len(rows)
    assert len(faults) == 1
    assert f"{BALANCED} 6: " in faults[0]
    assert said in faults[0]
    with pytest.raises(DataError, match=f"{BALANCED} 6"):
        _read(root)


def test_a_clip_in_two_tables_is_of_eval_before_train_and_of_balanced_before_unbalanced(copy):
    root, rows = copy
    by_split = {split: [row for row in rows if row[0] == split] for split, *_ in rows}
    twice = [
        ("balanced train", *by_split["eval"][0][1:]),
        ("unbalanced train", *by_split["balanced train"][1][1:]),
        ("unbalanced train", *by_split["unbalanced train"][2][1:]),
    ]
    write_tables(root, [*rows, *twice])
    listing, faults = _faults(root)
    assert {row.recording: row.split for row in listing.rows} == {video: split for split, video, *_ in rows}
    assert len(listing.rows) == len(rows)
    for fault, (_, video, *_), known in zip(
        faults, twice, ("eval", "balanced_train", "unbalanced_train"), strict=True
    ):
        assert f"{video} was taken from {known}_segments.csv already" in fault


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["one,/m/1,One"], "line 2: index must be a class number, is 'one'"),
        (["0,/m/1,One", "0,/m/2,Two"], "line 3: index 0, mid /m/2 or name 'Two' stood in a line before"),
        (["0,/m/1,One", "1,/m/1,Two"], "line 3: index 1, mid /m/1"),
        (["0,/m/1,One", "1,/m/2,One"], "line 3: index 1, mid /m/2 or name 'One'"),
    ],
)
def test_a_faulty_line_of_classes_is_named(copy, lines, said):
    root, _ = copy
    (root / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *lines, ""]))
    with pytest.raises(DataError, match=f"class_labels_indices.csv, {said}"):
        _read(root)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'--PJHxphWEs, 30.000, 40.000, "/m/09x0r"\n'])
def test_a_table_that_is_none_is_named(copy, content):
    root, _ = copy
    _table(root).write_bytes(content)
    listing, faults = _faults(root)
    assert {row.split for row in listing.rows} == {"eval", "unbalanced train"}
    assert len(faults) == 1
    assert faults[0].startswith(str(_table(root)))


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"needs class_labels_indices\.csv and some of eval_segments\.csv"):
        _faults(tmp_path)


# --- prepared -----------------------------------------------------------------------------------------------


def test_clips_that_are_much_shorter_than_their_segment_are_remarked(copy, tmp_path):
    """An mp3 that is cut off may announce no more than it has."""
    root, rows = copy
    for number, (_, video, _, _) in enumerate(rows[:2]):
        samples = 0.1 * np.random.default_rng(number).standard_normal(16_000 * (4, 10)[number])
        soundfile.write(root / f"{video}.wav", samples, 16_000)
    prepare("audioset", _read(root), root, tmp_path / "set", workers=1)
    expected = [f"{rows[0][1]}.wav: has 4.00 s of the 10 s that its table lists"]
    assert open_prepared(tmp_path / "set").lines(REMARKS) == expected


@pytest.mark.parametrize(
    ("subset", "training"),
    [
        ("balanced", {"balanced train"}),
        ("unbalanced", {"unbalanced train"}),
        ("full", {"balanced train", "unbalanced train"}),
    ],
)
def test_a_prepared_set_serves_every_subset(with_audio, tmp_path, subset, training):
    folder, rows = with_audio
    config = AudioSetData(root=str(folder), subset=subset, validation_share=0.25)
    splits = load_splits(config, tmp_path, 0, no_report)
    train, validation = set(splits.train.names), set(splits.validation.names)
    assert train | validation == {video for split, video, *_ in rows if split in training}
    assert not train & validation
    assert set(splits.test.names) == {video for split, video, *_ in rows if split == "eval"}
    labels = {video: {CLASSES[mid] for mid in mids} for _, video, _, mids in rows}
    for name, marks in zip(splits.train.names, splits.train.labels.matrix(), strict=True):
        assert {splits.classes[number] for number in np.flatnonzero(marks)} == labels[name]


def test_clips_that_are_not_there_are_counted_and_named(tmp_path):
    root = tmp_path / "AudioSet"
    rows = write_audioset(root)
    gone = [video for split, video, *_ in rows if split == "balanced train"][:3]
    for video in gone:
        (root / "balanced_train_segments" / f"Y{video}.wav").unlink()
    header = prepare("audioset", _read(root), root, tmp_path / "set", workers=1)
    assert header.splits == {"balanced train": 13, "eval": 8, "unbalanced train": 24}
    faults = open_prepared(tmp_path / "set").lines(FAULTS)
    assert faults == sorted(f"balanced_train_segments/Y{video}.wav: is not there" for video in gone)
    with pytest.raises(DataError, match="3 files cannot be used"):
        load_splits(AudioSetData(root=str(root)), tmp_path / "prepared", 0, quiet)


@pytest.mark.parametrize("subset", ["unbalanced", "full"])
def test_a_subset_that_the_copy_lacks_is_refused(tmp_path, subset):
    write_audioset(tmp_path / "AudioSet", {"eval": 8, "balanced train": 16})
    (tmp_path / "AudioSet" / "unbalanced_train_segments.csv").unlink()
    config = AudioSetData(root=str(tmp_path / "AudioSet"), subset=subset, validation_share=0.25)
    with pytest.raises(DataError, match="has no clips of AudioSet's unbalanced train segments"):
        load_splits(config, tmp_path / "prepared", 0, quiet)


def test_a_videos_side_does_not_depend_on_the_subset():
    """What validates the balanced subset is not trained on by the full one."""
    videos = np.array([f"{number:011d}" for number in range(3_000)])
    clips = Columns(("balanced train", "eval", "unbalanced train"), np.arange(3_000) % 3, videos)
    sides = {s: LAYOUTS["audioset"].sides(AudioSetData(subset=s), clips) for s in ("balanced", "full")}
    assert set(sides["balanced"].validation) < set(sides["full"].validation)
    assert set(sides["balanced"].train) < set(sides["full"].train)
    assert len(sides["full"].train) + len(sides["full"].validation) == 2_000
