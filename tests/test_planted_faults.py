"""Every fault that copies have, in each layout: each is named in the report, none is fatal unless asked."""

import io
from collections.abc import Callable
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from workbench.data import LAYOUTS
from workbench.data.__main__ import main
from workbench.data.listing import strictly
from workbench.data.prepared import FAULTS, REMARKS, open_prepared

from .small_audioset import write_audioset
from .small_datasets import sound_file, write_esc50
from .small_dcase2019 import write_dcase2019
from .small_folder import write_folder
from .small_fsdkaggle2019 import write_fsdkaggle2019
from .small_kinetics700 import write_kinetics700
from .small_magnatagatune import write_magnatagatune


class Spare(NamedTuple):
    """A table that a copy can do without."""

    table: str
    column: str
    said: str  # where it has not that column
    clips: int  # which are then lost


class Copy(NamedTuple):
    """How a layout's copy is written, and where its tables can be wrong."""

    write: Callable
    table: str
    label: tuple[str, str]  # in the table's last line, and what no vocabulary has
    said: str  # of that
    twice: str  # of a line that is there twice
    spare: Spare | None = None


def _write_folder(root):
    rows = write_folder(root)
    lines = ["file,labels", *(f"{row['file']},{row['labels'].partition(';')[0]}" for row in rows)]
    (root / "labels.csv").write_text("\n".join([*lines, ""]))
    (root / "classes.txt").write_text("rain\r\ndog bark\r\nwind\r\n")


COPIES = {
    "audioset": Copy(
        write_audioset,
        "eval_segments.csv",
        ("/m/", "/x/"),
        "is not in class_labels_indices.csv",
        "was taken from eval_segments.csv already",
        Spare("unbalanced_train_segments.csv", "# YTID", "has no line '# YTID", 24),
    ),
    "dcase2019": Copy(
        write_dcase2019,
        "meta.csv",
        ("\ttram\t", "\ttramway\t"),
        "scene_label must be one of",
        "is in line",
        Spare("evaluation_setup/fold1_evaluate.csv", "scene_label", "has no column scene_label", 0),
    ),
    "esc50": Copy(
        write_esc50, "meta/esc50.csv", ("helicopter", "helicoptre"), "is called 'helicoptre'", "is in line"
    ),
    "folder_single": Copy(
        _write_folder, "labels.csv", ("rain", "rian"), "'rian' is not in classes.txt", "is in line"
    ),
    "fsdkaggle2019": Copy(
        write_fsdkaggle2019,
        "FSDKaggle2019.meta/train_curated_post_competition.csv",
        ("Zipper_(clothing)", "Zip"),
        "'Zip' is not",
        "is in line",
        Spare(
            "FSDKaggle2019.meta/train_noisy_post_competition.csv",
            "flickr_video_URL",
            "has no column flickr",
            30,
        ),
    ),
    "kinetics700": Copy(
        write_kinetics700,
        "validate.csv",
        ("zumba", "zumab"),
        "label 'zumab' is none of the training clips",
        "is the clip of a line before",
    ),
    "magnatagatune": Copy(
        write_magnatagatune,
        "annotations_final.csv",
        ("\t0\t", "\t2\t"),
        "must be 0 or 1, is '2'",
        "is in line",
    ),
}
READ_AS_ANOTHERS, WITHOUT_TABLES = {"esc10", "folder"}, {"pool"}


def test_no_layout_is_forgotten_here():
    assert set(COPIES) | READ_AS_ANOTHERS | WITHOUT_TABLES == set(LAYOUTS)


def _bytes_of(samples, kind, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format=kind, **options)
    return file.getvalue()


def _wrong_files():
    """The bytes of files that are wrong, and what is said of each among the faults, or the remarks."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    mp3 = sound_file("mp3", 16_000, 99)
    return [
        (b"", FAULTS, "cannot be decoded"),
        (_bytes_of(np.full(8_000, np.nan), "WAV", subtype="FLOAT"), FAULTS, "holds NaN or infinity"),
        (_bytes_of(np.tile(noise[:, None], 8), "WAV"), REMARKS, "has 8 channels"),
        (mp3[: len(mp3) // 2], REMARKS, "s that it announces"),
        (_bytes_of(noise, "OGG"), REMARKS, "is OGG, whatever its name says"),
        (None, FAULTS, "is not there"),
    ]


def _spoil_tables(root, copy):
    """What is to be said of them, by where it stands."""
    table = root / copy.table
    *others, last = table.read_text().splitlines()
    lines = [*others, copy.label[1].join(last.rsplit(copy.label[0], 1)), others[-1]]
    assert lines[-2] != last
    table.write_text("\n".join([*lines, ""]))
    expected = {f"{table}, line {len(lines) - 1}": copy.said, f"{table}, line {len(lines)}": copy.twice}
    if copy.spare:
        spare = root / copy.spare.table
        spare.write_text(spare.read_text().replace(copy.spare.column, "other", 1))
        expected[str(spare)] = copy.spare.said
    for path in root.rglob("*.csv"):  # as spreadsheets write them
        path.write_bytes(("\ufeff" + path.read_text()).replace("\n", "\r\n").encode())
    return expected


def _named(place):
    """A clip that is not there stands under a name of its publisher's."""
    return place if ".csv" in place else PurePath(place).stem


@pytest.mark.parametrize("layout", COPIES)
def test_every_fault_is_named_and_none_is_fatal_unless_asked(layout, tmp_path, capsys):
    copy, root, to = COPIES[layout], tmp_path / "copy", tmp_path / "set"
    copy.write(root)
    rows = LAYOUTS[layout].read(root, strictly).rows
    expected = {FAULTS: _spoil_tables(root, copy), REMARKS: {}}
    for row, (content, where, said) in zip(rows, _wrong_files(), strict=False):
        if content is None:
            (root / row.file).unlink()
        else:
            (root / row.file).write_bytes(content)
        expected[where][_named(row.file)] = said

    command = ["prepare", layout, "--root", str(root), "--to", str(to), "--workers", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"{len(expected[FAULTS])} left out (" in printed
    prepared = open_prepared(to)
    said = {FAULTS: {}, REMARKS: {}}
    for name, of_place in said.items():
        for line in prepared.lines(name):
            place, what = line.split(": ", 1)
            of_place.setdefault(_named(place), []).append(what)
            assert name == REMARKS or line in printed
    assert set(said[FAULTS]) == set(expected[FAULTS])
    for name, of_place in expected.items():
        for place, what in of_place.items():
            assert any(what in one for one in said[name][place])
    wrong_files, spare = 3, copy.spare.clips if copy.spare else 0
    lost = len(rows) - prepared.header.num_clips
    # One more is that of the wrong label, if it is a clip without it.
    assert lost - wrong_files - spare in (0, 1)

    assert main([*command, "--strict"]) == 2
    assert f"has {len(expected[FAULTS])} faults" in capsys.readouterr().err
