"""The layout of TAU Urban Acoustic Scenes 2019: scenes and locations, split as published."""

import re

import numpy as np
import pytest

from workbench.audio.decode import decode
from workbench.data import LAYOUTS, fingerprint, load_splits
from workbench.data.clips import DataError
from workbench.data.recordings import Columns
from workbench.data_config import Dcase2019Data

from .small_datasets import parts_of, quiet, read_leniently
from .small_dcase2019 import SCENES, rows_of, write_dcase2019, write_tables

# Segments and locations to train, to test and unused: the README.md in the set's archive of documents.
PUBLISHED = {
    "airport": ((911, 25), (421, 12), (108, 3)),
    "bus": ((928, 46), (415, 20), (97, 5)),
    "metro": ((902, 41), (433, 20), (105, 6)),
    "metro_station": ((897, 37), (435, 17), (108, 3)),
    "park": ((946, 27), (386, 11), (108, 3)),
    "public_square": ((945, 28), (387, 12), (108, 3)),
    "shopping_mall": ((896, 24), (441, 10), (103, 2)),
    "street_pedestrian": ((924, 29), (429, 14), (87, 3)),
    "street_traffic": ((942, 27), (402, 12), (96, 4)),
    "tram": ((894, 41), (436, 21), (110, 8)),
}


@pytest.fixture
def tables(tmp_path):
    """Three locations of two clips each to train, one to test and one unused, without their audio."""
    locations = [("bus", "lyon", "train", 2), ("tram", "lyon", "train", 2), ("park", "paris", "train", 2)]
    rows = rows_of([*locations, ("bus", "milan", "evaluate", 2), ("park", "milan", "unused", 1)])
    write_tables(tmp_path, rows)
    return tmp_path, rows


def test_clips_are_split_and_labelled_as_published(tmp_path):
    rows = write_dcase2019(tmp_path / "copy")
    config = Dcase2019Data(root=str(tmp_path / "copy"), validation_share=0.2)
    splits = load_splits(config, tmp_path / "prepared", 0, quiet)
    assert splits.classes == tuple(sorted(SCENES))
    locations = {name: set(part.names.tolist()) for name, part in parts_of(splits).items()}
    of_split = {s: {row["identifier"] for row in rows if row["split"] == s} for s in ("train", "evaluate")}
    assert locations["pool"] == locations["train"]
    assert locations["train"] | locations["validation"] == of_split["train"]
    assert not locations["train"] & locations["validation"]
    assert locations["test"] == of_split["evaluate"]
    assert len(splits.train) + len(splits.validation) == 60
    scene_of = {row["identifier"]: row["scene_label"] for row in rows}
    for part in (splits.train, splits.validation, splits.test):
        found = [splits.classes[number] for number in part.labels.matrix().argmax(axis=1)]
        assert found == [scene_of[name] for name in part.names]


def test_stereo_is_averaged(tmp_path):
    rows = write_dcase2019(tmp_path / "copy")
    splits = load_splits(Dcase2019Data(root=str(tmp_path / "copy")), tmp_path / "prepared", 0, quiet)
    first = min(row["filename"] for row in rows if row["split"] == "evaluate")
    waveform, length = splits.test.read(np.array([0]))
    np.testing.assert_array_equal(waveform[0, : length[0]], decode(tmp_path / "copy" / first))
    assert (
        0.02 < waveform[0].double().std() / 32767 < 0.07
    )  # noise of 0.1 in either, less what lies above 8 kHz


def test_full_size_tables_give_the_published_counts(tmp_path):
    planned = []
    for scene, counts in PUBLISHED.items():
        for split, city, (clips, locations) in zip(
            ("train", "evaluate", "unused"), ("lyon", "paris", "milan"), counts, strict=True
        ):
            shares = [len(part) for part in np.array_split(np.arange(clips), locations)]
            planned += [(scene, city, split, share) for share in shares]
    write_tables(tmp_path, rows_of(planned))
    listing, faults = read_leniently("dcase2019", tmp_path)
    assert not faults
    for number, scene in enumerate(listing.classes):
        for split, expected in zip(("train", "evaluate", "unused"), PUBLISHED[scene], strict=True):
            found = [row for row in listing.rows if row.split == split and row.classes == (number,)]
            assert (len(found), len({row.recording for row in found})) == expected
    splits = ("evaluate", "train", "unused")
    split = np.array([splits.index(row.split) for row in listing.rows])
    columns = Columns(splits, split, np.array([row.recording for row in listing.rows]))
    sides = LAYOUTS["dcase2019"].sides(Dcase2019Data(), columns)
    assert len(sides.train) + len(sides.validation) == 9185
    assert 0.05 < len(sides.validation) / 9185 < 0.15
    assert len(sides.test) == 4185


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("scene_label", "beach", "scene_label must be one of airport, bus"),
        ("scene_label", "", "scene_label must be one of"),
        ("identifier", "", "which recording"),
        ("identifier", "lyon-0", "recording lyon-0 are in train and evaluate"),
    ],
)
def test_a_row_that_cannot_be_is_named_and_the_others_stay(tables, column, value, reason):
    root, rows = tables
    rows[6][column] = value
    write_tables(root, rows)
    listing, faults = read_leniently("dcase2019", root)
    [why] = [why for where, why in faults if where == f"{root / 'meta.csv'}, line 8"]
    assert reason in why
    assert len(faults) == 1
    assert len(listing.rows) == len(rows) - 1


@pytest.mark.parametrize("file", ["../x.wav", "/x.wav", "audio/../../x.wav"])
def test_a_path_that_leaves_the_copy_is_named(tables, file):
    root, rows = tables
    rows[0]["filename"] = file
    write_tables(root, rows)
    listing, [(where, why)] = read_leniently("dcase2019", root)
    assert where == f"{root / 'meta.csv'}, line 2"
    assert repr(file) in why
    assert len(listing.rows) == len(rows) - 1


def test_one_file_in_two_rows_is_named(tables):
    root, rows = tables
    table = root / "meta.csv"
    table.write_text(table.read_text() + "\t".join([rows[0]["filename"], "bus", "lyon-0", "a"]) + "\n")
    _, [(where, why)] = read_leniently("dcase2019", root)
    assert (where, why) == (f"{table}, line 11", f"{rows[0]['filename']} is in line 2 too")


def test_tables_that_contradict_each_other_are_named(tables):
    root, rows = tables
    setup = root / "evaluation_setup"
    train, test = setup / "fold1_train.csv", setup / "fold1_evaluate.csv"
    train.write_text(train.read_text().replace(f"{rows[0]['filename']}\tbus", f"{rows[0]['filename']}\tpark"))
    test.write_text(test.read_text() + f"{rows[1]['filename']}\tbus\naudio/other.wav\tbus\n")
    listing, faults = read_leniently("dcase2019", root)
    assert sorted(faults) == [
        (f"{test}, line 4", f"{rows[1]['filename']} is in {train}, line 3 too"),
        (f"{test}, line 5", "audio/other.wav is not in meta.csv"),
        (f"{train}, line 2", f"{rows[0]['filename']} is 'park', and 'bus' in meta.csv"),
    ]
    assert len(listing.rows) == len(rows) - 1


@pytest.mark.parametrize(
    "name", ["meta.csv", "evaluation_setup/fold1_train.csv", "evaluation_setup/fold1_evaluate.csv"]
)
def test_a_missing_table_stops_a_study(tables, name):
    (tables[0] / name).unlink()
    with pytest.raises(DataError, match=re.escape(f"{tables[0] / name}: is not there")):
        fingerprint(Dcase2019Data(root=str(tables[0])))


def test_the_order_and_the_form_of_lines_mean_nothing(tables):
    root, rows = tables
    config = Dcase2019Data(root=str(root))
    before = fingerprint(config)
    write_tables(root, rows[::-1], newline="\r\n", encoding="utf-8-sig")
    assert fingerprint(config) == before


def test_a_table_without_clips_is_refused(tables):
    write_tables(tables[0], [])
    with pytest.raises(DataError, match="has no clips of TAU"):
        read_leniently("dcase2019", tables[0])
