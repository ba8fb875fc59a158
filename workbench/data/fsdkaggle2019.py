"""FSDKaggle2019 (Fonseca et al. 2019): 4,970 curated and 19,815 noisy clips to train, 4,481 to test.

`FSDKaggle2019.meta/` has the tables, and each set of clips a folder of its own. A set whose folder is not
there was not downloaded, and is not listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from workbench.data.clips import DataError
from workbench.data.listing import Fault, Listing, Row, Rows, is_name, read_table
from workbench.data.recordings import Columns, Layout, Published, Recordings, Sides, hold_out
from workbench.data_config import FsdKaggle2019Data


class _Set(NamedTuple):
    """Of clips."""

    folder: str
    table: str
    source: str  # the column that names the upload which a clip was cut from


# Names and columns: the README.md in FSDKaggle2019.doc.zip. It also says that five curated clips have wrong
# labels and one no signal; the count of 4,970, which results are reported with, includes them.
SETS = {
    "curated": _Set(
        "FSDKaggle2019.audio_train_curated", "train_curated_post_competition.csv", "freesound_id"
    ),
    "noisy": _Set("FSDKaggle2019.audio_train_noisy", "train_noisy_post_competition.csv", "flickr_video_URL"),
    "test": _Set("FSDKaggle2019.audio_test", "test_post_competition.csv", "freesound_id"),
}
META = "FSDKaggle2019.meta"
USAGES = {"Public": "test public", "Private": "test private"}  # the leaderboard of a test clip, and its split


def read(root: Path, fault: Fault) -> Listing:
    """Classes are in the order of the vocabulary."""
    vocabulary = root / META / "vocabulary.csv"
    number = _vocabulary(vocabulary, fault)
    if not number:
        raise DataError(f"{vocabulary}: names no class; is {root} a copy of FSDKaggle2019?")
    rows = Rows(fault)
    for name, clips in SETS.items():
        if (root / clips.folder).is_dir():
            _read_set(root, name, clips, number, rows, fault)
    if not rows:
        folders = ", ".join(clips.folder for clips in SETS.values())
        raise DataError(f"{root}: has no clips; they must be in {folders}, and in the tables of {META}")
    return Listing(tuple(number), single_label=False, rows=list(rows))


def _vocabulary(table: Path, fault: Fault) -> Mapping[str, int]:
    """The number of each class's name, ascending. The table has no header."""
    names: dict[int, str] = {}
    for place, line in read_table(table, ("number", "name"), fault, has_header=False):
        number, name = line["number"], line["name"]
        if not number.isdecimal() or not name:
            fault(place, f"must be a number and the name of a class, is {number!r} and {name!r}")
        elif int(number) in names or name in names.values():
            fault(place, f"class {number}, {name}, is there already")
        else:
            names[int(number)] = name
    return {names[number]: rank for rank, number in enumerate(sorted(names))}


def _read_set(
    root: Path, name: str, clips: _Set, number: Mapping[str, int], rows: Rows, fault: Fault
) -> None:
    columns = ["fname", "labels", clips.source] + (["usage"] if name == "test" else [])
    for place, line in read_table(root / META / clips.table, columns, fault):
        labels = line["labels"].split(",")
        unknown = [label for label in labels if label not in number]
        if not is_name(line["fname"]):
            fault(place, f"fname must be a name inside {clips.folder}/, is {line['fname']!r}")
        elif unknown:
            fault(place, f"labels must be in vocabulary.csv, and {unknown[0]!r} is not")
        elif name == "test" and line["usage"] not in USAGES:
            fault(place, f"usage must be {' or '.join(USAGES)}, is {line['usage']!r}")
        else:
            split = USAGES[line["usage"]] if name == "test" else name
            classes = tuple(sorted({number[label] for label in labels}))
            rows.add(place, Row(f"{clips.folder}/{line['fname']}", line[clips.source], split, classes))


def sides(config: FsdKaggle2019Data, clips: Columns) -> Sides:
    """Some of the set that is trained on validate, with labels as noisy as it has."""
    train, validation = hold_out(clips, clips.of(config.subset), config.validation_share)
    usages = USAGES.values() if config.test_usage == "all" else (f"test {config.test_usage}",)
    return Sides(train, validation, test=clips.of(*usages))


PUBLISHED = Published(80, {"curated": 4970, "noisy": 19_815, "test public": 1120, "test private": 3361})
LAYOUTS = {"fsdkaggle2019": Layout("FSDKaggle2019", read, sides, PUBLISHED)}
DATASET = Recordings(lambda config: "fsdkaggle2019", LAYOUTS)
