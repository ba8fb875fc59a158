"""ESC-50 (Piczak 2015) and its ESC-10 subset: `meta/esc50.csv` and `audio/`.

The published folds keep all takes of one source recording together.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

from workbench.data.clips import DataError
from workbench.data.listing import Fault, Listing, Row, Rows, is_name, read_table
from workbench.data.recordings import Columns, Layout, Published, Recordings, Sides
from workbench.data_config import Esc50Data

NUM_FOLDS = 5
COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file")


def read(root: Path, fault: Fault, *, subset: str) -> Listing:
    """Classes are in the order of their target numbers."""
    table = root / "meta" / "esc50.csv"
    of_subset = []
    names: dict[int, Counter[str]] = {}
    for place, row in read_table(table, COLUMNS, fault):
        if subset == "esc10" and row["esc10"].lower() == "false":  # spreadsheets write FALSE
            continue
        if wrong := _wrong_value(row):
            fault(place, wrong)
        else:
            of_subset.append((place, row))
            names.setdefault(int(row["target"]), Counter())[row["category"]] += 1
    # That of most of its lines: a slip in one must not be held against the others.
    name_of = {target: counts.most_common(1)[0][0] for target, counts in names.items()}
    rows = Rows(fault)
    for place, row in of_subset:
        target = int(row["target"])
        if row["category"] != name_of[target]:
            fault(
                place, f"class {target} is called {row['category']!r}, and {name_of[target]!r} in other lines"
            )
        else:
            file = f"audio/{row['filename']}"
            rows.add(place, Row(file, row["src_file"], f"fold {row['fold']}", (target,)))
    if not rows:
        raise DataError(f"{table}: has no rows of {subset}")
    targets = sorted(name_of)
    numbered = [row._replace(classes=(targets.index(row.classes[0]),)) for row in rows]
    return Listing(tuple(name_of[target] for target in targets), single_label=True, rows=numbered)


def _wrong_value(row: dict[str, str]) -> str | None:
    if row["fold"] not in {str(fold) for fold in range(1, NUM_FOLDS + 1)}:
        return f"fold must be 1 to {NUM_FOLDS}, is {row['fold']!r}"
    if not row["target"].isdecimal():
        return f"target must be a class number, is {row['target']!r}"
    if row["esc10"].lower() not in ("true", "false"):
        return f"esc10 must be True or False, is {row['esc10']!r}"
    name = row["filename"]
    if not is_name(name):
        return f"filename must be a name inside audio/, is {name!r}"
    return None


def sides(config: Esc50Data, clips: Columns) -> Sides:
    """The fold after the test fold validates."""
    validation = config.test_fold % NUM_FOLDS + 1
    training = set(range(1, NUM_FOLDS + 1)) - {config.test_fold, validation}
    return Sides(
        train=clips.of(*(f"fold {fold}" for fold in training)),
        validation=clips.of(f"fold {validation}"),
        test=clips.of(f"fold {config.test_fold}"),
    )


def _published(classes: int) -> Published:
    """Eight clips of each class in each fold."""
    return Published(classes, {f"fold {fold}": 8 * classes for fold in range(1, NUM_FOLDS + 1)})


LAYOUTS = {
    "esc50": Layout("ESC-50", functools.partial(read, subset="esc50"), sides, _published(50)),
    "esc10": Layout(
        "ESC-50, of which ESC-10 is used", functools.partial(read, subset="esc10"), sides, _published(10)
    ),
}
DATASET = Recordings(lambda config: config.subset, LAYOUTS)
