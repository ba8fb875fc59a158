"""A folder of one's own recordings, without code: `labels.csv` beside them, or folders named by class.

    labels.csv                  file,labels and, as wanted, split and recording
    classes.txt                 the classes, a line each; without it they are the labels, sorted

`file` is a path below the folder. `labels` are separated by commas or semicolons; where several may be
right, a clip without any is one of no class. `split` is train, validation or test. `recording` is what the
file is a take of: all takes are on one side. Without `labels.csv` audio lies in `CLASS/` or `SPLIT/CLASS/`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from workbench.audio.decode import FORMATS, SOUNDTRACKS
from workbench.data.clips import DataError
from workbench.data.listing import Fault, Listing, Row, Rows, is_inside, read_table
from workbench.data.recordings import Columns, Layout, Recordings, Sides, hold_out
from workbench.data.walk import files_below, is_a_line
from workbench.data_config import FolderData

TABLE, CLASSES = "labels.csv", "classes.txt"
COLUMNS = ("file", "labels")
SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation"}
SPLITS |= {"test": "test"}
UNSPLIT = "all"  # where no split is named
# One that libsndfile cannot read is listed too: what is left out is named.
SUFFIXES = {*FORMATS, *SOUNDTRACKS, ".wma"}
NAMED = 3  # files of each other suffix


class _Clip(NamedTuple):
    """A line of the table, or a file in a class's folder."""

    file: str
    labels: tuple[str, ...]  # sorted
    split: str
    recording: str
    place: str  # to be named in messages


def audio_files(root: Path, fault: Fault, remarks: list[str]) -> list[str]:
    """Paths below `root`, at any depth, by their suffixes, sorted; `remarks` gets how many have others.

    As `files_below`.
    """
    found, others = [], []
    for folder, name in files_below(root):
        file = folder + name
        if Path(name).suffix.lower() not in SUFFIXES:
            others.append(file)
        elif is_a_line(file):
            found.append(file)
        else:
            fault(repr(str(root / file)), "must be named in UTF-8 without line breaks; rename it")
    remarks += _by_suffix(set(others) - {TABLE, CLASSES})
    return sorted(found)


def _by_suffix(files: set[str]) -> list[str]:
    """A line for each suffix. They are no faults: most are notes or pictures, and some perhaps sound."""
    of_suffix: dict[str, list[str]] = {}
    for file in sorted(files):
        of_suffix.setdefault(Path(file).suffix.lower(), []).append(file)
    lines = []
    for suffix, others in of_suffix.items():
        shown = [file if is_a_line(file) else repr(file) for file in others[:NAMED]]
        more = [f"and {len(others) - NAMED:,} more"] * (len(others) > NAMED)
        kind = (
            f"with the suffix {suffix if is_a_line(suffix) else repr(suffix)}" if suffix else "without suffix"
        )
        lines.append(f"{len(others):,} files {kind} are not read: {', '.join([*shown, *more])}")
    return lines


def read(root: Path, fault: Fault, *, single_label: bool) -> Listing:
    """Classes are in the order of `classes.txt`, or sorted."""
    table = root / TABLE
    remarks: list[str] = []
    clips = sorted(_of_table(table, fault) if table.is_file() else _of_folders(root, fault, remarks))
    known = _classes(root / CLASSES, fault)
    rows = Rows(fault)
    labels: list[tuple[str, ...]] = []
    for clip in clips:
        if single_label and len(clip.labels) != 1:
            fault(
                clip.place,
                f"{clip.file} must have one label, has {', '.join(clip.labels) or 'none'}; "
                "data.single_label=false takes any number",
            )
        elif known and (strange := [label for label in clip.labels if label not in known]):
            fault(clip.place, f"{strange[0]!r} is not in {CLASSES}")
        elif rows.add(clip.place, Row(clip.file, clip.recording, clip.split, ())):
            labels.append(clip.labels)
    if not labels:
        none = f"{root}: has no recordings to use; needs {TABLE}, or audio in folders named by class"
        raise DataError("\n".join([none, *remarks]))
    classes = known or tuple(sorted({label for of_clip in labels for label in of_clip}))
    if not classes:
        raise DataError(f"{table}: has not one label")
    number = {label: i for i, label in enumerate(classes)}
    listed = [
        row._replace(classes=tuple(sorted(number[label] for label in of_clip)))
        for row, of_clip in zip(rows, labels, strict=True)
    ]
    return Listing(classes, single_label=single_label, rows=listed, remarks=remarks)


def _of_table(table: Path, fault: Fault) -> Iterator[_Clip]:
    rows = list(read_table(table, COLUMNS, fault))
    has_splits = any((row.get("split") or "").strip() for _, row in rows)
    for place, row in rows:
        file, split = row["file"].strip(), (row.get("split") or "").strip()
        if not is_inside(file) or not is_a_line(file):
            fault(place, f"file must be a path below {table.parent}, is {file!r}")
        elif has_splits and split not in SPLITS:
            fault(place, f"split must be one of {', '.join(SPLITS)}, for all rows or for none, is {split!r}")
        else:
            file = str(PurePosixPath(file))
            labels = {label.strip() for label in re.split("[,;]", row["labels"])} - {""}
            recording = (row.get("recording") or "").strip() or file
            yield _Clip(file, tuple(sorted(labels)), SPLITS.get(split, UNSPLIT), recording, place)


def _of_folders(root: Path, fault: Fault, remarks: list[str]) -> Iterator[_Clip]:
    for other in sorted(root.glob("*.csv")):
        fault(str(other), f"is not read: a table must be called {TABLE}; rename it, or put it elsewhere")
    paths = [PurePosixPath(file).parts for file in audio_files(root, fault, remarks)]
    has_splits = {parts[0] for parts in paths} <= SPLITS.keys()
    for parts in paths:
        place, file = str(root.joinpath(*parts)), "/".join(parts)
        if len(parts) != 2 + has_splits:
            where = "SPLIT/CLASS/" if has_splits else "CLASS/"
            fault(place, f"must lie in {where} below {root}, or be listed in {TABLE}")
        else:
            yield _Clip(file, (parts[-2],), SPLITS[parts[0]] if has_splits else UNSPLIT, file, place)


def _classes(path: Path, fault: Fault) -> tuple[str, ...]:
    """As they stand there; none where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        fault(str(path), f"is no UTF-8 text with a class each line ({error})")
        return ()
    classes: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name in classes:
            fault(f"{path}, line {number}", f"{name} is there already")
        elif name:
            classes[name] = None
    return tuple(classes)


def sides(config: FolderData, clips: Columns) -> Sides:
    """As named; of validation and test, what is not named is held out of the rest."""
    train = clips.of("train", UNSPLIT)
    validation, test = clips.of("validation"), clips.of("test")
    if not len(test) and not len(validation):
        train, held = hold_out(clips, train, config.validation_share + config.test_share)
        validation, test = hold_out(clips, held, config.test_share)  # the same hash: those below its share
    elif not len(test):
        train, test = hold_out(clips, train, config.test_share)
    elif not len(validation):
        train, validation = hold_out(clips, train, config.validation_share)
    return Sides(train, validation, test)


TITLE = "a folder of recordings with labels"
LAYOUTS = {
    "folder": Layout(TITLE, functools.partial(read, single_label=False), sides),
    "folder_single": Layout(f"{TITLE}, one each", functools.partial(read, single_label=True), sides),
}
DATASET = Recordings(lambda config: "folder_single" if config.single_label else "folder", LAYOUTS)
