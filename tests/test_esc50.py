"""ESC-50's layout: read as published, or refused by file, line and column."""

import dataclasses
import itertools
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from workbench.config import SAMPLE_RATE
from workbench.data import LAYOUTS, corpus, fingerprint, load_splits
from workbench.data.clips import DataError
from workbench.data.listing import strictly
from workbench.data_config import Esc50Data

from .small_datasets import COLUMNS, identity_of, no_report, parts_of, quiet, write_table

ESC10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "esc10"


def _load(root, folder, report=quiet, **changes):
    return load_splits(Esc50Data(root=str(root), **changes), folder / "prepared", 0, report)


@pytest.mark.parametrize("test_fold", [1, 2, 3, 4, 5])
def test_folds_are_tested_validated_and_trained_as_published(pristine, test_fold, tmp_path_factory):
    root, rows = pristine
    splits = _load(root, tmp_path_factory.getbasetemp() / "folds", test_fold=test_fold)
    fold_of = {row["src_file"]: int(row["fold"]) for row in rows}
    folds = {
        name: {fold_of[recording] for recording in part.names} for name, part in parts_of(splits).items()
    }
    validation_fold = test_fold % 5 + 1
    training_folds = {1, 2, 3, 4, 5} - {test_fold, validation_fold}
    assert folds == {
        "pool": training_folds,
        "train": training_folds,
        "validation": {validation_fold},
        "test": {test_fold},
    }
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (27, 9, 9)


def test_a_table_of_the_published_size_gives_the_published_counts(tmp_path):
    rows = [
        {
            "filename": f"{fold}-{number}-A-{target}.wav",
            "fold": fold,
            "target": target,
            "category": f"class {target:02d}",
            "esc10": str(target < 10),
            "src_file": number,
        }
        for number, (fold, target, _) in enumerate(itertools.product(range(1, 6), range(50), range(8)))
    ]
    (tmp_path / "meta").mkdir()
    write_table(tmp_path, rows, COLUMNS[:-1])
    for layout, classes in (("esc50", 50), ("esc10", 10)):
        listing = LAYOUTS[layout].read(tmp_path, strictly)
        assert len(listing.classes) == classes
        counts = Counter(row.split for row in listing.rows)
        assert counts == {f"fold {fold}": 8 * classes for fold in range(1, 6)}
        assert counts == LAYOUTS[layout].published.clips


def test_clips_are_their_files_at_16_khz_with_their_labels(pristine, tmp_path):
    root, rows = pristine
    splits = _load(root, tmp_path)
    assert splits.classes == ("dog", "rain", "helicopter")  # by target number
    expected = [row for row in rows if row["fold"] == "1"]
    expected.sort(key=lambda row: row["filename"])
    assert splits.test.names.tolist() == [row["src_file"] for row in expected]
    for i, row in enumerate(expected):
        info = soundfile.info(root / "audio" / row["filename"])
        assert abs(splits.test.length[i] - info.frames * SAMPLE_RATE / info.samplerate) < 1
        assert splits.classes[splits.test.labels.matrix()[i].argmax()] == row["category"]
        level = splits.test.read(np.array([i]))[0].double().std() / 32767
        assert 0.04 < level < 0.12  # noise of 0.1, less what lies above 8 kHz


def test_the_pool_takes_in_clips_of_the_embedded_corpus(pristine, tmp_path):
    splits = _load(pristine[0], tmp_path, corpus_clips=10, corpus_clip_seconds=1.0)
    assert len(splits.pool) == len(splits.train) + 10
    assert splits.pool.labels.matrix().shape == (37, 0)
    waveform, length = splits.pool.read(np.array([0, 36]))
    assert length[1] == SAMPLE_RATE
    made, _ = corpus.synthesis.synthesise(corpus.synthesis.Recipe(clip_seconds=1.0), "pool", 9)
    np.testing.assert_array_equal(waveform[1, :SAMPLE_RATE], made)
    plain = Esc50Data(root=str(pristine[0]))
    assert fingerprint(dataclasses.replace(plain, corpus_clips=10)) != fingerprint(plain)


def test_esc10_is_a_column_of_the_table(pristine, tmp_path):
    splits = _load(pristine[0], tmp_path, subset="esc10")
    assert splits.classes == ("dog", "helicopter")
    assert (len(splits.train), len(splits.test)) == (18, 6)
    assert splits.fingerprint != fingerprint(Esc50Data(root=str(pristine[0])))


def test_a_spreadsheet_writes_true_its_own_way_and_anything_else_is_named(esc50, tmp_path):
    root, rows = esc50
    for row in rows:
        row["esc10"] = row["esc10"].upper()
    write_table(root, rows)
    assert (len(_load(root, tmp_path, subset="esc10").train)) == 18
    rows[3]["esc10"] = "yes"
    write_table(root, rows)
    with pytest.raises(DataError, match="line 5: esc10 must be True or False, is 'yes'"):
        _load(root, tmp_path, subset="esc10")


def _spoil(root, rows):
    """One file for each way not to be audio: their names."""
    names = [row["filename"] for row in rows]
    wavs = [name for name in names if name.endswith(".wav")]
    audio = root / "audio"
    (audio / names[2]).write_bytes(b"not audio at all" * 100)
    (audio / names[7]).write_bytes(b"")
    (audio / wavs[5]).write_bytes((audio / wavs[5]).read_bytes()[:20])
    soundfile.write(audio / wavs[6], np.zeros(0), 44_100)
    soundfile.write(audio / wavs[7], np.full(8_000, np.nan, np.float32), 44_100, subtype="FLOAT")
    (audio / names[-1]).unlink()
    spoilt = {names[2], names[7], *wavs[5:8], names[-1]}
    assert len(spoilt) == 6
    return spoilt


def test_every_unusable_file_is_named_at_once(esc50, tmp_path):
    root, rows = esc50
    spoilt = _spoil(root, rows)
    for _ in range(2):  # from the files, then from what was found out
        with pytest.raises(DataError) as error:
            _load(root, tmp_path)
        message = str(error.value)
        assert {row["filename"] for row in rows if row["filename"] in message} == spoilt
        assert "6 files" in message
        for reason in ("cannot be decoded", "is empty", "NaN", "is not there"):
            assert reason in message
        assert "data.skip_unreadable" in message


def test_unusable_files_can_be_left_out(esc50, tmp_path):
    root, rows = esc50
    spoilt = _spoil(root, rows)
    splits = _load(root, tmp_path, skip_unreadable=True)
    assert set(splits.left_out) == {f"audio/{name}" for name in spoilt}
    assert sum(len(part) for name, part in parts_of(splits).items() if name != "pool") == len(rows) - 6
    left_out_of_test = [r for r in rows if r["filename"] in spoilt and r["fold"] == "1"]
    assert len(splits.test) == 9 - len(left_out_of_test)
    assert splits.fingerprint == fingerprint(Esc50Data(root=str(root), skip_unreadable=True))
    assert splits.left_out == _load(root, tmp_path, no_report, skip_unreadable=True).left_out


def test_a_folder_without_one_usable_file_is_refused(esc50, tmp_path):
    root, _ = esc50
    shutil.rmtree(root / "audio")
    with pytest.raises(DataError, match="not one of its recordings"):
        _load(root, tmp_path, skip_unreadable=True)
    with pytest.raises(DataError, match="45 files"):
        _load(root, tmp_path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("fold", "0"),
        ("fold", "6"),
        ("fold", "x"),
        ("fold", ""),
        ("target", "dog"),
        ("target", "-1"),
        ("target", "1.5"),
        ("target", ""),
        ("filename", "../x.wav"),
        ("filename", "/abs.wav"),
        ("filename", "sub/x.wav"),
        ("filename", ".."),
        ("filename", "."),
        ("filename", ""),
    ],
)
def test_a_row_that_cannot_be_is_named_by_its_line(esc50, column, value, tmp_path):
    root, rows = esc50
    rows[4][column] = value
    write_table(root, rows)
    with pytest.raises(DataError, match=r"esc50\.csv, line 6: ") as error:
        _load(root, tmp_path)
    assert column in str(error.value)
    assert repr(value) in str(error.value)


def test_a_line_is_counted_as_an_editor_counts(esc50, tmp_path):
    """Also behind an empty one."""
    root, rows = esc50
    rows[4]["fold"] = "9"
    write_table(root, rows)
    table = root / "meta" / "esc50.csv"
    header, rest = table.read_text().split("\n", 1)
    table.write_text(f"{header}\n\n{rest}")
    with pytest.raises(DataError, match="line 7: fold"):
        _load(root, tmp_path)


def test_a_row_that_is_cut_short_is_refused(esc50, tmp_path):
    table = esc50[0] / "meta" / "esc50.csv"
    table.write_text(table.read_text() + "1-99-A-0.wav,1,0\n")
    with pytest.raises(DataError, match="line 47"):
        _load(esc50[0], tmp_path)


@pytest.mark.parametrize("column", ["filename", "fold", "target", "category", "esc10", "src_file"])
def test_a_missing_column_is_named(esc50, column, tmp_path):
    root, rows = esc50
    write_table(root, rows, [name for name in COLUMNS if name != column])
    with pytest.raises(DataError, match=rf"esc50\.csv: has no column {column}"):
        _load(root, tmp_path)


def test_the_take_is_not_needed(esc50, tmp_path):
    root, rows = esc50
    write_table(root, rows, [name for name in COLUMNS if name != "take"])
    assert len(_load(root, tmp_path).test) == 9


def test_takes_of_one_recording_in_two_folds_are_refused(esc50, tmp_path):
    """Training would hear what the test asks."""
    root, rows = esc50
    assert rows[0]["src_file"] == rows[1]["src_file"]
    rows[1]["fold"] = "3"
    write_table(root, rows)
    with pytest.raises(DataError, match=r"esc50\.csv") as error:
        _load(root, tmp_path)
    assert f"recording {rows[0]['src_file']} are in fold 1 and fold 3" in str(error.value)


def test_one_file_in_two_rows_is_refused(esc50, tmp_path):
    """Under another recording's name it could stand on both sides of a split."""
    root, rows = esc50
    rows[20]["filename"] = rows[0]["filename"]
    write_table(root, rows)
    with pytest.raises(DataError, match=r"line 22: .*line 2") as error:
        _load(root, tmp_path)
    assert rows[0]["filename"] in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_table_from_a_spreadsheet_reads_the_same(esc50, encoding, newline, pristine):
    root, rows = esc50
    write_table(root, rows, encoding=encoding, newline=newline)
    assert fingerprint(Esc50Data(root=str(root))) == fingerprint(Esc50Data(root=str(pristine[0])))


def test_the_order_of_the_rows_means_nothing(esc50, pristine, tmp_path):
    """Each prepared by itself, so neither takes the other's order."""
    root, rows = esc50
    write_table(root, rows[::-1])
    ours = _load(root, tmp_path / "reversed", label_fraction=0.5)
    published = _load(pristine[0], tmp_path / "published", label_fraction=0.5)
    assert ours.fingerprint == published.fingerprint
    for first, second in zip(parts_of(ours).values(), parts_of(published).values(), strict=True):
        assert identity_of(first) == identity_of(second)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00filename\x80", b"", b"\x00" * 100])
def test_a_table_that_is_no_table_is_refused(esc50, content, tmp_path):
    table = esc50[0] / "meta" / "esc50.csv"
    table.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(table))):
        _load(esc50[0], tmp_path)


def test_a_table_without_rows_is_refused(esc50, tmp_path):
    write_table(esc50[0], [])
    with pytest.raises(DataError, match="no rows of esc50"):
        _load(esc50[0], tmp_path)


def test_settings_that_leave_a_side_without_clips_are_refused(esc50, tmp_path):
    root, rows = esc50
    write_table(root, [row for row in rows if row["fold"] != "3"])
    held = r"fold 1 \(9\), fold 2 \(9\), fold 4 \(9\), fold 5 \(9\)"
    with pytest.raises(DataError, match=rf"leave no clip for test; .*: {held}$"):
        _load(root, tmp_path, test_fold=3)
    assert len(_load(root, tmp_path, test_fold=4).test) == 9


def test_a_missing_folder_is_refused_with_the_setting_that_names_it(tmp_path):
    for use in (fingerprint, lambda config: load_splits(config, tmp_path, 0, quiet)):
        with pytest.raises(DataError, match=r"data\.root") as error:
            use(Esc50Data(root=str(tmp_path / "nowhere")))
        assert str(tmp_path / "nowhere") in str(error.value)


def test_one_byte_is_another_dataset(esc50, tmp_path):
    root, rows = esc50
    config = Esc50Data(root=str(root))
    first = _load(root, tmp_path)
    path = root / "audio" / next(row["filename"] for row in rows if row["filename"].endswith("wav"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(config) != first.fingerprint
    reports = []
    assert _load(root, tmp_path, reports.append).fingerprint == fingerprint(config)
    assert len(reports) == 1  # decoded anew, not taken from before


@pytest.mark.parametrize("column", ["target", "category", "src_file"])
def test_another_label_is_another_dataset(esc50, column):
    root, rows = esc50
    before = fingerprint(Esc50Data(root=str(root)))
    old = rows[0]["category" if column == "category" else "src_file"]
    for row in rows:
        if old in row.values():  # all of the class, or all takes of the recording
            row[column] = "99"
    write_table(root, rows)
    assert fingerprint(Esc50Data(root=str(root))) != before


def test_a_class_of_two_names_is_refused(esc50):
    root, rows = esc50
    rows[4]["category"] = "cat"
    write_table(root, rows)
    with pytest.raises(DataError, match="line 6: class 17 is called 'cat', and 'rain' in other lines"):
        fingerprint(Esc50Data(root=str(root)))


def test_a_slip_in_the_first_line_of_a_class_is_that_lines_alone(esc50):
    root, rows = esc50
    rows[0]["category"] = "dgo"
    write_table(root, rows)
    faults = []
    listing = LAYOUTS["esc50"].read(root, lambda *fault: faults.append(fault))
    assert listing.classes == ("dog", "rain", "helicopter")
    assert len(listing.rows) == len(rows) - 1
    ((where, why),) = faults
    assert where.endswith("line 2")
    assert why == "class 0 is called 'dgo', and 'dog' in other lines"


@pytest.mark.skipif(not ESC10.is_dir(), reason="needs a copy of ESC-10 beside the checkout")
def test_esc10_itself_loads(tmp_path):
    splits = load_splits(Esc50Data(root=str(ESC10)), tmp_path, 0, quiet)
    assert len(splits.classes) == 10
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (240, 80, 80)
    for part in (splits.train, splits.validation, splits.test):
        assert len(set(part.labels.matrix().sum(axis=0).tolist())) == 1  # as many clips of each class
        assert 3.5 < part.length.min() / SAMPLE_RATE < part.length.max() / SAMPLE_RATE < 7.5
