"""DCASE 2019 task 1a: TAU Urban Acoustic Scenes 2019, development (Mesaros et al. 2018).

`meta.csv`, `evaluation_setup/` and `audio/`. The published setup keeps all clips of a location on one side:
9,185 clips of 325 locations to train, 4,185 of 149 to test; 1,030 of 40, all in Milan, are in neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from workbench.data.clips import DataError
from workbench.data.listing import Fault, Listing, Row, Rows, read_table
from workbench.data.recordings import Columns, Layout, Published, Recordings, Sides, hold_out
from workbench.data_config import Dcase2019Data

# The labels, columns and counts: the set's README, as in soundata/soundata, soundata/datasets/tau2019uas.py.
SCENES = (
    "airport",
    "bus",
    "metro",
    "metro_station",
    "park",
    "public_square",
    "shopping_mall",
    "street_pedestrian",
    "street_traffic",
    "tram",
)
META_COLUMNS = ("filename", "scene_label", "identifier")
SETUP_COLUMNS = ("filename", "scene_label")
SETUP = {"train": "fold1_train.csv", "evaluate": "fold1_evaluate.csv"}  # fold1_test.csv: without labels
UNUSED = "unused"


class _Setup(NamedTuple):
    """What the evaluation setup says of a clip."""

    place: str
    split: str
    scene: str


def read(root: Path, fault: Fault) -> Listing:
    """A recording is a location; clips that the setup leaves out are in a split of their own."""
    table = root / "meta.csv"
    setup = _read_setup(root, fault)
    rows = Rows(fault)
    for place, line in read_table(table, META_COLUMNS, fault, delimiter="\t"):
        file, scene = line["filename"], line["scene_label"]
        planned = setup.pop(file, _Setup("", UNUSED, scene))
        if scene not in SCENES:
            fault(place, f"scene_label must be one of {', '.join(SCENES)}, is {scene!r}")
        elif planned.scene != scene:
            fault(planned.place, f"{file} is {planned.scene!r}, and {scene!r} in meta.csv")
        else:
            rows.add(place, Row(file, line["identifier"], planned.split, (SCENES.index(scene),)))
    if not rows:
        raise DataError(f"{table}: has no clips of TAU Urban Acoustic Scenes 2019")
    for file, planned in setup.items():
        fault(planned.place, f"{file} is not in meta.csv")
    return Listing(SCENES, single_label=True, rows=list(rows))


def _read_setup(root: Path, fault: Fault) -> dict[str, _Setup]:
    """By file."""
    setup: dict[str, _Setup] = {}
    for split, name in SETUP.items():
        for place, line in read_table(root / "evaluation_setup" / name, SETUP_COLUMNS, fault, delimiter="\t"):
            file = line["filename"]
            if file in setup:
                fault(place, f"{file} is in {setup[file].place} too")
            else:
                setup[file] = _Setup(place, split, line["scene_label"])
    return setup


def sides(config: Dcase2019Data, clips: Columns) -> Sides:
    """The clips to evaluate are tested on; some locations of the others validate."""
    train, validation = hold_out(clips, clips.of("train"), config.validation_share)
    return Sides(train, validation, test=clips.of("evaluate"))


PUBLISHED = Published(len(SCENES), {"train": 9185, "evaluate": 4185, UNUSED: 1030})
LAYOUTS = {"dcase2019": Layout("TAU Urban Acoustic Scenes 2019, development", read, sides, PUBLISHED)}
DATASET = Recordings(lambda config: "dcase2019", LAYOUTS)
