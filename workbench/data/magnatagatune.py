"""MagnaTagATune (Law et al. 2009): clips of 29 s with 188 tags, of which the 50 most frequent are classes.

`annotations_final.csv` and the folders `0` to `9` and `a` to `f`, which are split 12:1:3. Clips with none of
the 50 tags are left out. That is what gives the paper its 15,247 clips to train on: 15,250, less three
published files that are empty. It leaves 1,529 to validate and 4,332 to test.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from workbench.data.clips import DataError
from workbench.data.listing import Fault, Listing, Row, Rows, read_table
from workbench.data.recordings import Columns, Layout, Published, Recordings, Sides
from workbench.data_config import MagnaTagATuneData

NUM_TAGS = 50
COLUMNS = ("clip_id", "mp3_path")  # all others are tags, 0 or 1
# FOLDER/ARTIST-ALBUM-TRACK-TITLE-START-END.mp3, in seconds of the song that clips are cut from.
FILE = re.compile(r"(?P<song>(?P<folder>[0-9a-f])/[^/]+)-(?P<start>\d+)-(?P<end>\d+)\.mp3")
# p-lambda/jukemir, jukemir/datasets/__init__.py; so too MTAT_split of jongpillee/music_dataset_split.
SPLIT_OF = {**dict.fromkeys("0123456789ab", "train"), "c": "validation", **dict.fromkeys("def", "test")}


def read(root: Path, fault: Fault) -> Listing:
    """A recording is a song. The most frequent tag is the first class; of equals, the first by name."""
    table = root / "annotations_final.csv"
    rows = Rows(fault)
    tags: list[str] = []
    for place, line in read_table(table, COLUMNS, fault, delimiter="\t"):
        tags = tags or [name for name in line if name not in COLUMNS]
        found = FILE.fullmatch(line["mp3_path"])
        wrong = next((tag for tag in tags if line[tag] not in ("0", "1")), None)
        if found is None:
            fault(place, f"mp3_path must be FOLDER/SONG-START-END.mp3 in 0 to f, is {line['mp3_path']!r}")
        elif wrong is not None:
            fault(place, f"{wrong} must be 0 or 1, is {line[wrong]!r}")
        else:
            marked = tuple(number for number, tag in enumerate(tags) if line[tag] == "1")
            seconds = int(found["end"]) - int(found["start"])
            rows.add(place, Row(found[0], found["song"], SPLIT_OF[found["folder"]], marked, seconds))
    return _of_frequent_tags(table, tags, list(rows), fault)


def _of_frequent_tags(table: Path, tags: list[str], rows: list[Row], fault: Fault) -> Listing:
    """`rows` whose classes are the numbers of their `tags`, as those of the tags that are frequent."""
    counts = Counter(tag for row in rows for tag in row.classes)
    if not counts:
        raise DataError(f"{table}: has no clip with a tag")
    if len(counts) < NUM_TAGS:
        fault(str(table), f"has clips of {len(counts)} tags alone; needs {NUM_TAGS}")
    frequent = sorted(counts, key=lambda tag: (-counts[tag], tags[tag]))[:NUM_TAGS]
    class_of = {tag: number for number, tag in enumerate(frequent)}
    numbered = (
        row._replace(classes=tuple(sorted(class_of[tag] for tag in row.classes if tag in class_of)))
        for row in rows
    )
    return Listing(
        tuple(tags[tag] for tag in frequent),
        single_label=False,
        rows=[row for row in numbered if row.classes],
    )


def sides(config: MagnaTagATuneData, clips: Columns) -> Sides:
    """As split by folder."""
    return Sides(clips.of("train"), clips.of("validation"), clips.of("test"))


PUBLISHED = Published(NUM_TAGS, {"train": 15_247, "validation": 1529, "test": 4332})
LAYOUTS = {"magnatagatune": Layout("MagnaTagATune", read, sides, PUBLISHED)}
DATASET = Recordings(lambda config: "magnatagatune", LAYOUTS)
