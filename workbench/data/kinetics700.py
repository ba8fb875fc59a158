"""Kinetics-700 (Carreira et al. 2019; with the clips of 2020, Smaira et al.): the sound of YouTube clips.

`train.csv` and `validate.csv` (`val.csv` with the videos that CVDF hosts) lie in the copy's folder or in
`annotations/`; the clips, as videos or as sound extracted from them, anywhere below it (`youtube` has their
names). `test.csv` is not read: its labels are kept back for a challenge.
"""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path

from workbench.data.clips import DataError
from workbench.data.listing import Fault, Listing, Row, read_table
from workbench.data.recordings import Columns, Layout, Published, Recordings, Sides, hold_out
from workbench.data.youtube import ClipFiles, seconds_between, wrong_segment
from workbench.data_config import Kinetics700Data

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
TRAIN, VALIDATE = "train", "validate"
TABLES = {  # a video that is in both validates
    VALIDATE: ("validate.csv", "val.csv"),
    TRAIN: ("train.csv",),
}
SPLITS = {"train": TRAIN, "validate": VALIDATE, "val": VALIDATE}  # as the tables call them
RARE = 20  # times fewer clips than a class has in the median: published classes differ less


def read(root: Path, fault: Fault) -> Listing:
    """Classes are the training clips' labels, in alphabetical order. A clip that is not there stands under
    the name that it has with CVDF."""
    tables = {split: _table(root, names) for split, names in TABLES.items()}
    counts = _labels(tables[TRAIN])
    names = tuple(sorted(counts))
    class_of = {name: number for number, name in enumerate(names)}
    files = ClipFiles(root)
    rows: dict[str, Row] = {}
    split_of: dict[str, str] = {}  # by video
    for split, table in tables.items():
        for place, line in read_table(table, COLUMNS, fault):
            video, start, end = line["youtube_id"], line["time_start"], line["time_end"]
            if wrong := _wrong_value(line, split, class_of) or wrong_segment(video, start, end):
                fault(place, wrong)
                continue
            if split_of.setdefault(video, split) != split:
                fault(place, f"video {video} is in {tables[split_of[video]].name} too, and left out here")
                continue
            file = files.find(video, start) or f"{split}/{video}_{float(start):06.0f}_{float(end):06.0f}.mp4"
            if file in rows:
                fault(place, f"{file} is the clip of a line before; a name without a start is of one clip")
            else:
                seconds = seconds_between(start, end)
                rows[file] = Row(file, video, split, (class_of[line["label"]],), seconds)
    if not rows:
        raise DataError(f"{root}: has no clips of Kinetics-700; needs train.csv and validate.csv")
    remarks = [
        f"{tables[TRAIN]}: label {name!r} stands in {counts[name]} of {counts.total()} lines; is it mistyped?"
        for name in names
        if RARE * counts[name] <= statistics.median(counts.values())
    ]
    return Listing(names, single_label=True, rows=list(rows.values()), remarks=remarks)


def _table(root: Path, names: tuple[str, ...]) -> Path:
    """The one that is there; where none is, the first of them."""
    paths = [root / folder / name for name in names for folder in ("", "annotations")]
    return next((path for path in paths if path.is_file()), paths[0])


def _labels(table: Path) -> Counter[str]:
    """How many clips have each."""
    lines = read_table(table, COLUMNS, lambda where, reason: None)  # its faults are named by `read`
    return Counter(line["label"] for _, line in lines if line["label"])


def _wrong_value(line: dict[str, str], split: str, class_of: dict[str, int]) -> str | None:
    if line["label"] not in class_of:
        return f"label {line['label']!r} is none of the training clips"
    if SPLITS.get(line["split"]) != split:
        return f"split must be {split}, as the table's name says, is {line['split']!r}"
    return None


def sides(config: Kinetics700Data, clips: Columns) -> Sides:
    """The published validation clips test: so its publisher asks, for those of the test have no labels."""
    train, validation = hold_out(clips, clips.of(TRAIN), config.validation_share)
    return Sides(train=train, validation=validation, test=clips.of(VALIDATE))


LAYOUTS = {"kinetics700": Layout("Kinetics-700", read, sides, Published(700))}
DATASET = Recordings(lambda config: "kinetics700", LAYOUTS)
