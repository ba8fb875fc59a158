"""AudioSet (Gemmeke et al. 2017): `*_segments.csv`, `class_labels_indices.csv` and clips of YouTube videos.

The tables lie in the copy's folder or, as PANNs has them, in `metadata/`. The clips, already cut out of their
videos, lie anywhere below it (`youtube` has their names). A copy may have some of the splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from workbench.data.clips import DataError
from workbench.data.listing import Fault, Listing, Row, read_cells, read_table
from workbench.data.recordings import Columns, Layout, Published, Recordings, Sides, hold_out
from workbench.data.youtube import ClipFiles, seconds_between, wrong_segment
from workbench.data_config import AudioSetData

CLASSES = "class_labels_indices.csv"
CLASS_COLUMNS = ("index", "mid", "display_name")
EVAL, BALANCED, UNBALANCED = "eval", "balanced train", "unbalanced train"
TABLES = {  # by split; a clip that is in two is of the first
    EVAL: "eval_segments.csv",
    BALANCED: "balanced_train_segments.csv",
    UNBALANCED: "unbalanced_train_segments.csv",
}
HEADER = ["# YTID", "start_seconds", "end_seconds", "positive_labels"]
NUM_SEGMENTS = re.compile("num_segs=([0-9]+)")
TRAINED_ON = {"balanced": (BALANCED,), "unbalanced": (UNBALANCED,), "full": (BALANCED, UNBALANCED)}


def read(root: Path, fault: Fault) -> Listing:
    """Classes are in the order of their indices. A clip that is not there stands under PANNs' name."""
    names, class_of = _read_classes(_table(root, CLASSES), fault)
    classes_of: dict[str, tuple[int, ...]] = {}  # by the cell: clips of the same labels share theirs
    files = ClipFiles(root)
    rows: dict[str, Row] = {}
    remarks: list[str] = []
    for split, table in TABLES.items():
        path = _table(root, table)
        for place, (video, start, end, labels) in (
            _read_segments(path, fault, remarks) if path.is_file() else ()
        ):
            if wrong := wrong_segment(video, start, end):
                fault(place, wrong)
            elif unknown := [mid for mid in labels.split(",") if mid not in class_of]:
                fault(place, f"label {unknown[0]!r} is not in {CLASSES}")
            elif video in rows:
                fault(place, f"{video} was taken from {TABLES[rows[video].split]} already")
            else:
                if labels not in classes_of:
                    classes_of[labels] = tuple(sorted({class_of[mid] for mid in labels.split(",")}))
                file = files.find(video, start) or f"{path.stem}/Y{video}.wav"
                rows[video] = Row(file, video, split, classes_of[labels], seconds_between(start, end))
    if not rows:
        raise DataError(
            f"{root}: has no clips of AudioSet; needs {CLASSES} and some of {', '.join(TABLES.values())}"
        )
    return Listing(names, single_label=False, rows=list(rows.values()), remarks=remarks)


def _table(root: Path, name: str) -> Path:
    path = root / "metadata" / name
    return path if path.is_file() else root / name


def _read_classes(path: Path, fault: Fault) -> tuple[tuple[str, ...], dict[str, int]]:
    """Their names, and which of them each machine id (mid) is."""
    mid_of: dict[int, str] = {}
    name_of: dict[int, str] = {}
    for place, line in read_table(path, CLASS_COLUMNS, fault):
        index, mid, name = (line[column] for column in CLASS_COLUMNS)
        if not index.isdecimal():
            fault(place, f"index must be a class number, is {index!r}")
        elif int(index) in mid_of or mid in mid_of.values() or name in name_of.values():
            fault(place, f"index {index}, mid {mid} or name {name!r} stood in a line before")
        else:
            mid_of[int(index)], name_of[int(index)] = mid, name
    order = sorted(mid_of)
    return tuple(name_of[index] for index in order), {mid_of[index]: k for k, index in enumerate(order)}


def _read_segments(path: Path, fault: Fault, remarks: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each line's place, and its four cells. The header is a comment, the last of several."""
    table, has_header = str(path), False  # in text once, not for each of two million lines
    count, announced = 0, None
    for number, cells in read_cells(path, fault, skipinitialspace=True):
        if cells[0].startswith("#"):
            has_header = has_header or cells == HEADER
            announced = next(filter(None, map(NUM_SEGMENTS.fullmatch, cells)), announced)
            continue
        if not has_header:
            fault(table, f"has no line {', '.join(HEADER)!r} before its first segment")
            return
        count += 1
        place = f"{table}, line {number}"
        if len(cells) != len(HEADER):
            fault(place, f"must have {len(HEADER)} cells, has {len(cells)}; is the line cut short?")
        else:
            yield place, cells
    if announced is not None and int(announced[1]) != count:
        remarks.append(f"{table}: has {count:,} segments, and its head announces {int(announced[1]):,}")


def sides(config: AudioSetData, clips: Columns) -> Sides:
    """Raises DataError where the copy lacks a split: half of a training set must not pass for the whole."""
    training = TRAINED_ON[config.subset]
    for split in (*training, EVAL):
        if not len(clips.of(split)):
            raise DataError(
                f"{config.root}: has no clips of AudioSet's {split} segments, which data.subset="
                f"{config.subset} asks for; add them and {TABLES[split]}, or choose another subset"
            )
    train, validation = hold_out(clips, clips.of(*training), config.validation_share)
    return Sides(train=train, validation=validation, test=clips.of(EVAL))


# As the heads of the three tables count them.
PUBLISHED = Published(527, {EVAL: 20_371, BALANCED: 22_160, UNBALANCED: 2_041_789})
LAYOUTS = {"audioset": Layout("AudioSet", read, sides, PUBLISHED)}
DATASET = Recordings(lambda config: "audioset", LAYOUTS)
