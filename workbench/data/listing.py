"""What a copy of a published set holds, by its own tables: a row each clip, before any audio is read."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from workbench.data.clips import DataError

# Is told of what cannot be used: where it stands (a file, or a table's line), and why.
Fault = Callable[[str, str], None]


class Row(NamedTuple):
    """A clip."""

    file: str  # below the copy's root
    recording: str  # what it is a take of: all takes must be on one side of a split
    split: str  # the publisher's, such as "train" or "fold 1"
    classes: tuple[int, ...]  # ascending; none for a clip without labels


@dataclass(frozen=True)
class Listing:
    """Rows in an order of their own: the same copy gives the same."""

    classes: tuple[str, ...]
    single_label: bool
    rows: Sequence[Row]


def strictly(where: str, reason: str) -> None:
    """A `Fault` that ends the reading."""
    raise DataError(f"{where}: {reason}")


def read_table(
    path: Path, columns: Sequence[str], fault: Fault, delimiter: str = ","
) -> Iterator[tuple[str, dict[str, str]]]:
    """Each line's place, to be named in messages, and what it has under the table's own header.

    With or without a byte order mark, with any line ends. A file that is no such table gives no line, and
    one that is cut short is left out.
    """
    if not path.is_file():
        fault(str(path), "is not there")
        return
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                fault(str(path), f"has no column {', '.join(missing)}; needs {', '.join(columns)}")
                return
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                absent = [name for name in columns if row[name] is None]
                if absent:
                    fault(place, f"has no {absent[0]}; is the line cut short?")
                    continue
                yield place, row
    except (UnicodeDecodeError, csv.Error) as error:
        fault(str(path), f"is no table of separated UTF-8 text ({error})")


def is_inside(file: str) -> bool:
    """Whether a path from a table stays below the copy's root."""
    path = PurePosixPath(file)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in file
