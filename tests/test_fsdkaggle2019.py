"""FSDKaggle2019's layout: two training sets and a test set, read as published."""

import dataclasses
import re
import shutil

import pytest

from workbench.data import LAYOUTS, fingerprint, load_splits, prepare
from workbench.data.clips import DataError
from workbench.data.listing import strictly
from workbench.data_config import FsdKaggle2019Data
from workbench.settings import ConfigError, identity

from .small_datasets import labels_by_name, no_report, quiet, read_leniently
from .small_fsdkaggle2019 import (
    SETS,
    VOCABULARY,
    folder_of,
    rows_of,
    table_of,
    write_fsdkaggle2019,
    write_tables,
)

SOURCE = {"curated": "freesound_id", "noisy": "flickr_video_URL"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("fsd") / "copy"
    return root, write_fsdkaggle2019(root)


@pytest.fixture
def tables(tmp_path):
    """Tables and empty folders."""
    rows = {name: rows_of(name, 6) for name in SETS}
    write_tables(tmp_path, rows)
    for name in SETS:
        folder_of(tmp_path, name).mkdir()
    return tmp_path, rows


@pytest.fixture(scope="module")
def prepared(copy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    listing = LAYOUTS["fsdkaggle2019"].read(copy[0], strictly)
    prepare.prepare("fsdkaggle2019", listing, copy[0], folder, workers=1)
    return FsdKaggle2019Data(root=str(folder), validation_share=0.2)


@pytest.mark.parametrize("subset", ["curated", "noisy"])
def test_one_prepared_set_serves_both_training_sets(copy, prepared, subset, tmp_path):
    _, rows = copy
    splits = load_splits(dataclasses.replace(prepared, subset=subset), tmp_path, 0, no_report)
    assert splits.classes == VOCABULARY
    train, validation = labels_by_name(splits, "train"), labels_by_name(splits, "validation")
    assert train
    assert validation
    written = {row[SOURCE[subset]]: set(row["labels"].split(",")) for row in rows[f"train_{subset}"]}
    assert {**train, **validation} == written
    assert len(train) + len(validation) == len(written)
    assert labels_by_name(splits, "test") == {
        row["freesound_id"]: set(row["labels"].split(",")) for row in rows["test"]
    }


@pytest.mark.parametrize("usage", ["public", "private"])
def test_a_leaderboard_can_be_tested_on_alone(copy, prepared, usage, tmp_path):
    splits = load_splits(dataclasses.replace(prepared, test_usage=usage), tmp_path, 0, no_report)
    expected = {row["freesound_id"] for row in copy[1]["test"] if row["usage"] == usage.capitalize()}
    assert set(splits.test.names.tolist()) == expected


def test_another_leaderboard_is_another_evaluation_of_the_same_model():
    whole, private = (FsdKaggle2019Data(test_usage=usage) for usage in ("all", "private"))
    assert identity(whole, "finetune") == identity(private, "finetune")
    assert identity(whole, "evaluate") != identity(private, "evaluate")


def test_a_copy_without_the_noisy_clips_is_whole_without_them(copy, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(copy[0], root)
    shutil.rmtree(folder_of(root, "train_noisy"))
    config = FsdKaggle2019Data(root=str(root), validation_share=0.2)
    splits = load_splits(config, tmp_path / "prepared", 0, quiet)
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (36, 12)
    with pytest.raises(DataError, match=r"no clip for train and validation; .*curated \(36\), test private"):
        load_splits(dataclasses.replace(config, subset="noisy"), tmp_path / "prepared", 0, quiet)


def test_full_size_tables_give_the_published_counts(tmp_path):
    """Those of the set's README; of the test clips, 1,120 were on the public leaderboard."""
    rows = {"train_curated": rows_of("train_curated", 4970), "train_noisy": rows_of("train_noisy", 19_815)}
    rows["test"] = rows_of("test", 4481)
    for number, row in enumerate(rows["test"]):
        row["usage"] = "Public" if number < 1120 else "Private"
    write_tables(tmp_path, rows)
    for name in SETS:
        folder_of(tmp_path, name).mkdir()
    listing, faults = read_leniently("fsdkaggle2019", tmp_path)
    assert not faults
    counts = {"curated": 4970, "noisy": 19_815, "test public": 1120, "test private": 3361}
    assert {split: sum(row.split == split for row in listing.rows) for split in counts} == counts
    assert len(listing.rows) == len({row.file for row in listing.rows}) == 29_266


@pytest.mark.parametrize(
    ("name", "column", "value", "reason"),
    [
        ("train_curated", "labels", "Bark,Moo", "'Moo' is not"),
        ("train_noisy", "labels", "", "'' is not"),
        ("train_noisy", "labels", "bark", "'bark' is not"),
        (
            "train_curated",
            "fname",
            "../x.wav",
            "fname must be a name inside FSDKaggle2019.audio_train_curated/",
        ),
        ("test", "fname", "/x.wav", "fname must be a name"),
        ("test", "fname", "", "fname must be a name"),
        ("test", "usage", "Both", "usage must be Public or Private, is 'Both'"),
        ("test", "freesound_id", "train_curated-2", "are in curated and test private"),
        ("test", "freesound_id", "", "which recording"),
    ],
)
def test_a_row_that_cannot_be_is_named_and_the_others_stay(tables, name, column, value, reason):
    root, rows = tables
    rows[name][3][column] = value
    write_tables(root, rows)
    listing, [(where, why)] = read_leniently("fsdkaggle2019", root)
    assert where == f"{table_of(root, name)}, line 5"
    assert reason in why
    assert len(listing.rows) == 17


def test_one_file_in_two_rows_is_named(tables):
    root, rows = tables
    rows["test"][4]["fname"] = rows["test"][1]["fname"]
    write_tables(root, rows)
    _, [(where, why)] = read_leniently("fsdkaggle2019", root)
    assert where.endswith("test_post_competition.csv, line 6")
    assert why.endswith("is in line 3 too")


def test_labels_without_quotes_are_not_taken_for_the_next_column(tables):
    root, _ = tables
    table = table_of(root, "train_curated")
    table.write_text(table.read_text().replace('"', ""))
    listing, faults = read_leniently("fsdkaggle2019", root)
    assert len(faults) == 3
    assert all("more cells" in why for _, why in faults)
    assert len(listing.rows) == 15


@pytest.mark.parametrize(
    ("line", "reason"),
    [("x,Bark", "must be a number"), ("9,Bark", "there already"), ("0,Cow", "there already")],
)
def test_a_line_of_the_vocabulary_that_cannot_be_is_named(tables, line, reason):
    root, _ = tables
    vocabulary = root / "FSDKaggle2019.meta" / "vocabulary.csv"
    vocabulary.write_text(vocabulary.read_text() + line + "\n")
    listing, [(where, why)] = read_leniently("fsdkaggle2019", root)
    assert where == f"{vocabulary}, line 7"
    assert reason in why
    assert listing.classes == VOCABULARY


@pytest.mark.parametrize("name", ["vocabulary.csv", "train_noisy_post_competition.csv"])
def test_a_missing_table_stops_a_study(tables, name):
    root, _ = tables
    table = root / "FSDKaggle2019.meta" / name
    table.unlink()
    with pytest.raises(DataError, match=re.escape(f"{table}: is not there")):
        fingerprint(FsdKaggle2019Data(root=str(root)))


def test_a_folder_that_is_no_copy_is_refused(tables):
    root, _ = tables
    for name in SETS:
        folder_of(root, name).rmdir()
    with pytest.raises(DataError, match=r"has no clips; they must be in FSDKaggle2019\.audio_train_curated"):
        read_leniently("fsdkaggle2019", root)


def test_the_order_and_the_form_of_lines_mean_nothing(tables):
    root, rows = tables
    config = FsdKaggle2019Data(root=str(root))
    before = fingerprint(config)
    write_tables(
        root, {name: clips[::-1] for name, clips in rows.items()}, newline="\r\n", encoding="utf-8-sig"
    )
    assert fingerprint(config) == before


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_leaves_no_clips_is_refused(share):
    with pytest.raises(ConfigError, match="validation_share: must lie in"):
        FsdKaggle2019Data(validation_share=share)
