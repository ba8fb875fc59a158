"""A folder of one's own: what its table or its folders' names say is what is trained and tested on."""

import dataclasses
import os
import random
import re

import numpy as np
import pytest
import torch

from workbench.config import FinetuningConfig, ModelConfig, TrialConfig
from workbench.data import LAYOUTS, fingerprint, load_splits
from workbench.data.clips import DataError
from workbench.data.listing import strictly
from workbench.data.prepare import prepare
from workbench.data.prepared import FAULTS, REMARKS, open_prepared
from workbench.data.recordings import columns_listed
from workbench.data_config import FolderData
from workbench.settings import ConfigError, from_dict, identity, to_dict
from workbench.study.study_file import load_study
from workbench.training.finetune import score

from .small_datasets import parts_of, quiet
from .small_folder import COLUMNS, folder_rows, write_folder, write_sound, write_table
from .trained import finetuned


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder") / "mine"
    return root, write_folder(root)


def _load(root, folder, report=quiet, **changes):
    return load_splits(FolderData(root=str(root), **changes), folder / "prepared", 0, report)


def _read(root, layout="folder"):
    """The listing, and what was wrong: place -> reason."""
    faults = {}
    listing = LAYOUTS[layout].read(root, lambda where, reason: faults.__setitem__(where, reason))
    return listing, faults


def _labels(listing):
    return {row.file: {listing.classes[label] for label in row.classes} for row in listing.rows}


# --- a table ------------------------------------------------------------------------------------------------


def test_splits_classes_and_labels_are_those_of_the_table(pristine, tmp_path):
    root, rows = pristine
    splits = _load(root, tmp_path)
    assert splits.classes == ("dog bark", "rain", "wind")
    assert not splits.single_label
    row_of = {row["recording"] or row["file"]: row for row in rows}
    for name in ("train", "validation", "test"):
        part = getattr(splits, name)
        expected = [row for row in rows if row["split"] == name]
        assert sorted(part.names) == sorted(row["recording"] or row["file"] for row in expected)
        for recording, labels in zip(part.names, part.labels.matrix(), strict=True):
            found = {splits.classes[label] for label in np.flatnonzero(labels)}
            if not recording.startswith("take"):
                assert found == set(re.split("; ", row_of[recording]["labels"]))
    assert len(splits.pool) == len(splits.train) == 24


def test_labels_are_separated_by_commas_or_semicolons(tmp_path):
    rows = [
        {"file": "a.wav", "labels": "rain,dog"},
        {"file": "b.wav", "labels": " dog ;rain; dog;"},
        {"file": "c.wav", "labels": "dog"},
        {"file": "d.wav", "labels": ""},
    ]
    write_table(tmp_path, rows, ("file", "labels"))
    listing = LAYOUTS["folder"].read(tmp_path, strictly)
    both = {"rain", "dog"}
    assert _labels(listing) == {"a.wav": both, "b.wav": both, "c.wav": {"dog"}, "d.wav": set()}


def test_a_table_as_a_spreadsheet_writes_it_reads_the_same(tmp_path):
    rows = folder_rows()
    write_table(tmp_path / "plain", rows)
    random.Random(0).shuffle(rows)
    write_table(tmp_path / "sheet", rows, COLUMNS[::-1], encoding="utf-8-sig", newline="\r\n")
    plain, sheet = (LAYOUTS["folder"].read(tmp_path / name, strictly) for name in ("plain", "sheet"))
    assert plain == sheet


def test_classes_txt_has_the_classes_and_their_order(pristine, tmp_path):
    write_table(tmp_path, folder_rows())
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfwind\r\nhail\r\n\r\nrain\r\ndog bark\r\n")
    listing = LAYOUTS["folder"].read(tmp_path, strictly)
    assert listing.classes == ("wind", "hail", "rain", "dog bark")
    assert _labels(listing) == _labels(LAYOUTS["folder"].read(pristine[0], strictly))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"file": "../outside.wav"}, "below"),
        ({"file": "/etc/x.wav"}, "below"),
        ({"file": ""}, "below"),
        ({"file": "a\nb.wav"}, "below"),
        ({"split": "training set"}, "'training set'"),
        ({"split": ""}, "for all rows or for none"),
        ({"file": "audio/000.wav"}, "audio/000.wav is in line"),
        ({"file": "./audio/000.wav"}, "audio/000.wav is in line"),
        ({"labels": "hail"}, "'hail' is not in classes.txt"),
        ({"recording": "take 1"}, "takes of recording take 1 are in"),
    ],
)
def test_a_line_that_cannot_be_is_named_and_the_others_are_read(tmp_path, changes, words):
    rows = folder_rows()
    assert rows[5]["split"] == "validation"
    assert rows[2]["recording"] == "take 1"
    rows[5] |= changes
    write_table(tmp_path, rows)
    (tmp_path / "classes.txt").write_text("rain\ndog bark\nwind\n")
    listing, faults = _read(tmp_path)
    [(place, reason)] = faults.items()
    assert words in reason
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/labels\.csv, line \d+", place)
    assert len(listing.rows) == len(rows) - 1
    with pytest.raises(DataError, match=r"labels\.csv, line"):
        fingerprint(FolderData(root=str(tmp_path)))


@pytest.mark.parametrize("missing", ["file", "labels"])
def test_a_missing_column_is_named(tmp_path, missing):
    write_table(tmp_path, folder_rows(), [name for name in COLUMNS if name != missing])
    with pytest.raises(DataError, match=rf"labels\.csv: has no column {missing}"):
        fingerprint(FolderData(root=str(tmp_path)))


def test_a_row_that_is_cut_short_is_named(tmp_path):
    write_table(tmp_path, folder_rows())
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("audio/last.wav\n")
    listing, faults = _read(tmp_path)
    assert "has no labels" in faults[f"{tmp_path}/labels.csv, line 42"]
    assert len(listing.rows) == 40


def test_a_class_that_stands_twice_is_named(tmp_path):
    write_table(tmp_path, folder_rows())
    (tmp_path / "classes.txt").write_text("rain\nwind\nrain\ndog bark\n")
    assert _read(tmp_path)[1] == {f"{tmp_path}/classes.txt, line 3": "rain is there already"}


def test_a_file_that_is_listed_and_not_there_is_counted(tmp_path):
    root = tmp_path / "mine"
    rows = write_folder(root)
    (root / rows[7]["file"]).unlink()
    with pytest.raises(DataError, match=rf"1 files cannot be used\n  {rows[7]['file']}: is not there"):
        _load(root, tmp_path)
    assert _load(root, tmp_path, skip_unreadable=True).left_out == (rows[7]["file"],)


# --- one label, or several ----------------------------------------------------------------------------------


def test_a_set_whose_rows_contradict_single_label_is_refused_by_file(pristine):
    root, rows = pristine
    with pytest.raises(DataError, match=r"audio/000\.wav must have one label, has dog bark, rain; ") as error:
        fingerprint(FolderData(root=str(root), single_label=True))
    assert re.match(rf"{re.escape(str(root))}/labels\.csv, line 2: ", str(error.value))
    listing, faults = _read(root, "folder_single")
    assert len(faults) == sum(";" in row["labels"] for row in rows) == 10
    assert len(listing.rows) == 30


def test_single_label_is_part_of_what_the_data_are(tmp_path):
    rows = [row | {"labels": row["labels"].split(";")[0]} for row in folder_rows()]
    mine = tmp_path / "mine"
    for number, row in enumerate(rows):
        write_sound(mine / row["file"], number)
    write_table(mine, rows)
    several, one = (_load(mine, tmp_path, single_label=single) for single in (False, True))
    assert (several.single_label, one.single_label) == (False, True)
    np.testing.assert_array_equal(one.test.labels.matrix(), several.test.labels.matrix())
    assert one.fingerprint != several.fingerprint
    prepare(
        "folder", LAYOUTS["folder"].read(tmp_path / "mine", strictly), tmp_path / "mine", tmp_path / "set"
    )
    with pytest.raises(DataError, match="is a prepared folder, and data asks for folder_single"):
        fingerprint(FolderData(root=str(tmp_path / "set"), single_label=True))


def test_single_label_is_a_setting_like_any_other():
    trial = from_dict(TrialConfig, {"data": {"kind": "folder", "single_label": True}})
    assert trial.data.single_label
    assert from_dict(TrialConfig, to_dict(trial)) == trial
    assert identity(trial.data) != identity(FolderData())


STUDY = "{question: '?', preset: smoke, metric: accuracy, vary: {model.num_heads: [1, 2]}}"


def test_a_study_of_accuracy_wants_single_labels(tmp_path):
    """By the setting, for a folder's config has no fixed answer."""
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY)

    def load(single, pooling):
        settings = f"data={{kind: folder, single_label: {single}}}", f"finetuning.pooling={pooling}"
        return load_study(path, assignments=settings)

    assert load("true", "mean").trials()[0].config.data.single_label
    with pytest.raises(ConfigError, match="accuracy needs single-label data"):
        load("false", "mean")
    with pytest.raises(ConfigError, match="single-label data need mean"):
        load("true", "linear_softmax")


@pytest.mark.parametrize("single", [True, False])
def test_a_trial_is_trained_and_judged_as_the_setting_says(tmp_path, single):
    """Probabilities of all classes add up to one where one label alone can be right."""
    _write_files(tmp_path / "mine", [f"{kind}/{n}.wav" for kind in ("dog", "rain") for n in range(20)])
    shares = {"validation_share": 0.3, "test_share": 0.3}
    trial = TrialConfig(
        data=FolderData(root=str(tmp_path / "mine"), single_label=single, clip_seconds=0.25, **shares),
        model=ModelConfig(num_blocks=1, width=16, num_heads=2, ffn_dim=16, first_kernel=7, kernel=5),
        pretraining=None,
        finetuning=FinetuningConfig(steps=1, batch_size=4, num_evaluations=1),
    )
    splits = load_splits(trial.data, tmp_path / "prepared", 0, quiet)
    model = finetuned(trial, splits).model
    metrics, scores = score(trial, model, splits.test, torch.device("cpu"), "test")
    assert ("test/accuracy" in metrics) == single
    assert np.allclose(scores.sum(axis=1), 1.0, atol=1e-5) == single


# --- folders ------------------------------------------------------------------------------------------------


def _write_files(root, files):
    for number, file in enumerate(files):
        write_sound(root / file, number, seconds=0.3)


def test_folders_are_classes(tmp_path):
    """Also one that is called as a split is, where others are not."""
    _write_files(tmp_path, ["train/1.wav", "train/2.FLAC", "plane/1.wav", ".hidden/x.wav", "plane/._1.wav"])
    (tmp_path / "plane" / "notes.txt").write_text("not audio")
    listing = LAYOUTS["folder_single"].read(tmp_path, strictly)
    assert listing.classes == ("plane", "train")
    assert _labels(listing) == {"plane/1.wav": {"plane"}, "train/1.wav": {"train"}, "train/2.FLAC": {"train"}}
    assert {row.split for row in listing.rows} == {"all"}


def test_folders_of_splits_hold_folders_of_classes(tmp_path):
    _write_files(tmp_path, [f"{split}/{name}/1.wav" for split in ("train", "val", "test") for name in "ab"])
    listing = LAYOUTS["folder"].read(tmp_path, strictly)
    assert listing.classes == ("a", "b")
    assert [(row.file, row.split) for row in listing.rows] == [
        ("test/a/1.wav", "test"),
        ("test/b/1.wav", "test"),
        ("train/a/1.wav", "train"),
        ("train/b/1.wav", "train"),
        ("val/a/1.wav", "validation"),
        ("val/b/1.wav", "validation"),
    ]


@pytest.mark.parametrize(
    ("files", "wrong", "words"),
    [
        (["dog/1.wav", "1.wav"], "1.wav", "must lie in CLASS/"),
        (["dog/1.wav", "dog/deep/1.wav"], "dog/deep/1.wav", "must lie in CLASS/"),
        (["train/dog/1.wav", "train/1.wav"], "train/1.wav", "must lie in SPLIT/CLASS/"),
    ],
)
def test_a_file_in_no_classs_folder_is_named(tmp_path, files, wrong, words):
    _write_files(tmp_path, files)
    listing, faults = _read(tmp_path)
    assert list(faults) == [str(tmp_path / wrong)]
    assert words in faults[str(tmp_path / wrong)]
    assert len(listing.rows) == 1


def test_a_table_of_another_name_is_not_passed_over(tmp_path):
    _write_files(tmp_path, ["audio/1.wav"])
    (tmp_path / "metadata.csv").write_text("file_name,label\n")
    assert "must be called labels.csv" in _read(tmp_path)[1][str(tmp_path / "metadata.csv")]


def test_names_that_no_list_can_hold_are_named(tmp_path):
    _write_files(tmp_path, ["a/1.wav", "a/two\nlines.wav"])
    (tmp_path / "a" / os.fsdecode(b"\xff.wav")).write_bytes(b"")
    listing, faults = _read(tmp_path)
    assert [row.file for row in listing.rows] == ["a/1.wav"]
    assert len(faults) == 2
    assert all("without line breaks" in reason for reason in faults.values())


def test_links_are_followed_but_not_in_circles(tmp_path):
    _write_files(tmp_path, ["elsewhere/1.wav", "mine/a/1.wav"])
    (tmp_path / "mine" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine" / "a" / "round").symlink_to(tmp_path / "mine")
    assert set(_labels(LAYOUTS["folder"].read(tmp_path / "mine", strictly))) == {"a/1.wav", "b/1.wav"}


def test_folders_that_link_to_each_other_are_gone_through_once(tmp_path):
    """By their own names, where links give them others: audio that is listed twice may be on two sides."""
    _write_files(tmp_path, ["dog/1.wav", "cat/1.wav", "owl/1.wav"])
    for here in ("dog", "cat", "owl"):
        for there in {"dog", "cat", "owl"} - {here}:
            (tmp_path / here / f"a {there}").symlink_to(tmp_path / there)
    (tmp_path / "a puppy").symlink_to(tmp_path / "dog")
    assert set(_labels(LAYOUTS["folder"].read(tmp_path, strictly))) == {"dog/1.wav", "cat/1.wav", "owl/1.wav"}


@pytest.mark.parametrize("files", [[], ["notes/readme.txt"]])
def test_a_folder_without_recordings_is_refused(tmp_path, files):
    for file in files:
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("")
    with pytest.raises(DataError, match=r"has no recordings to use; needs labels\.csv, or audio in folders"):
        fingerprint(FolderData(root=str(tmp_path)))


def test_audio_that_cannot_be_decoded_is_named_not_passed_over(tmp_path):
    _write_files(tmp_path / "mine", ["a/1.wav", "b/1.wav"])
    (tmp_path / "mine" / "a" / "2.wma").write_bytes(b"what no library here reads")
    listing = LAYOUTS["folder"].read(tmp_path / "mine", strictly)
    prepare("folder", listing, tmp_path / "mine", tmp_path / "set", workers=1)
    assert open_prepared(tmp_path / "set").lines(FAULTS)[0].startswith("a/2.wma: cannot be decoded")


def test_files_of_other_suffixes_are_counted_not_passed_over_silently(tmp_path):
    _write_files(tmp_path, ["a/1.wav", "b/1.wav"])
    (tmp_path / "classes.txt").write_text("a\nb\n")
    others = ["b/.hidden.amr", "a/1.amr", "a/2.amr", "b/1.AMR", "b/2.amr", "b/notes.txt", "README"]
    for other in [*others, os.fsdecode(b"a/\xff.\xff")]:
        (tmp_path / other).write_bytes(b"")
    remarks = [
        "1 files without suffix are not read: README",
        "4 files with the suffix .amr are not read: a/1.amr, a/2.amr, b/1.AMR, and 1 more",
        "1 files with the suffix .txt are not read: b/notes.txt",
        r"1 files with the suffix '.\udcff' are not read: 'a/\udcff.\udcff'",
    ]
    for layout in ("folder", "pool"):
        listing = LAYOUTS[layout].read(tmp_path, strictly)  # no fault
        assert len(listing.rows) == 2
        assert sorted(listing.remarks) == sorted(remarks)
        prepare(layout, listing, tmp_path, tmp_path / ".sets" / layout, workers=1)
        assert open_prepared(tmp_path / ".sets" / layout).lines(REMARKS) == listing.remarks


@pytest.mark.parametrize("layout", ["folder", "pool"])
def test_a_folder_of_nothing_else_names_what_there_is(tmp_path, layout):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.amr").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"has no (.|\n)*1 files with the suffix \.amr are not read: a/1\.amr"
    ):
        LAYOUTS[layout].read(tmp_path, strictly)


# --- what is held out ---------------------------------------------------------------------------------------


def _sides(files, root, **changes):
    """Of a table with these files and splits, by file."""
    write_table(root, [{"file": file, "labels": "x", "split": split} for file, split in files.items()])
    listing = LAYOUTS["folder"].read(root, strictly)
    columns = columns_listed(listing)
    sides = LAYOUTS["folder"].sides(FolderData(**changes), columns)
    return {
        name: {listing.rows[i].file for i in getattr(sides, name)} for name in ("train", "validation", "test")
    }


def _named(split, count, start=0):
    return {f"{number:05d}.wav": split for number in range(start, start + count)}


def test_shares_are_held_out_where_no_split_is_named(tmp_path):
    files = _named("", 4_000)
    sides = _sides(files, tmp_path, validation_share=0.1, test_share=0.25)
    assert len(sides["validation"]) == pytest.approx(400, abs=60)
    assert len(sides["test"]) == pytest.approx(1_000, abs=90)
    assert sum(map(len, sides.values())) == 4_000
    assert set.union(*sides.values()) == set(files)
    more = _sides(files | _named("", 500, start=4_000), tmp_path, validation_share=0.1, test_share=0.25)
    for name, part in sides.items():
        assert part <= more[name], "what is added moves nothing"


@pytest.mark.parametrize(("named", "held"), [("test", "validation"), ("validation", "test")])
def test_the_split_that_is_missing_is_held_out_of_training(tmp_path, named, held):
    files = _named("train", 500) | _named(named, 50, start=500)
    sides = _sides(files, tmp_path)
    assert sides[named] == set(_named(named, 50, start=500))
    assert len(sides[held]) == pytest.approx(50, abs=25)
    assert sides["train"] | sides[held] == set(_named("train", 500))
    assert not sides["train"] & sides[held]


def test_takes_are_held_out_together(tmp_path):
    rows = [{"file": f"{n}.wav", "labels": "x", "recording": f"r{n // 4}"} for n in range(200)]
    for row in rows:
        write_sound(tmp_path / "mine" / row["file"], int(row["file"][:-4]), seconds=0.05)
    write_table(tmp_path / "mine", rows, ("file", "labels", "recording"))
    splits = _load(tmp_path / "mine", tmp_path, validation_share=0.2, test_share=0.2)
    for part in (splits.train, splits.validation, splits.test):
        assert set(np.unique(part.names, return_counts=True)[1]) == {4}
    names = [set(part.names) for name, part in parts_of(splits).items() if name != "pool"]
    assert sum(map(len, names)) == 50


@pytest.mark.parametrize("changes", [{"validation_share": 0.0}, {"test_share": 0.9}, {"test_share": 1.5}])
def test_shares_that_leave_nothing_are_refused(changes):
    with pytest.raises(ConfigError, match="share"):
        dataclasses.replace(FolderData(), **changes)
