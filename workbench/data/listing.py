"""What a copy of a published set holds, by its own tables: a row each clip, before any audio is read."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from workbench.data.clips import DataError

# Is told of what cannot be used: where it stands (a file, or a table's line), and why.
Fault = Callable[[str, str], None]


class Row(NamedTuple):
    """A clip."""

    file: str  # below the copy's root
    recording: str  # what it is a take of: all takes must be on one side of a split
    split: str  # the publisher's, such as "train" or "fold 1"
    classes: tuple[int, ...]  # ascending; none for a clip without labels
    seconds: int | None = None  # how long the tables say that it is, rounded


@dataclass(frozen=True)
class Listing:
    """Rows in an order of their own: the same copy gives the same."""

    classes: tuple[str, ...]
    single_label: bool
    rows: Sequence[Row]
    remarks: Sequence[str] = ()  # what is remarkable about tables that can be used


def strictly(where: str, reason: str) -> None:
    """A `Fault` that ends the reading."""
    raise DataError(f"{where}: {reason}\nMend it; or python -m workbench.data prepare leaves it out, by name")


class Rows:
    """Rows as they come from tables. Those that break a rule of all sets are told to `fault`, and left out.

    Their files lie below the copy's root, and are listed once. Each is of a recording, all takes of which
    are in one split.
    """

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._rows: dict[str, Row] = {}
        self._place_of: dict[str, str] = {}
        self._split_of: dict[str, str] = {}  # by recording

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def add(self, place: str, row: Row) -> bool:
        """Whether it is kept; `place` is where it stands, as `read_table` gives it."""
        if not is_inside(row.file):
            self._fault(place, f"{row.file!r} is no path below the set's folder")
        elif row.file in self._rows:
            table = place.rpartition("line ")[0]
            self._fault(place, f"{row.file} is in {self._place_of[row.file].removeprefix(table)} too")
        elif not row.recording:
            self._fault(place, f"does not say which recording {row.file} is of")
        elif (split := self._split_of.setdefault(row.recording, row.split)) != row.split:
            self._fault(
                place,
                f"takes of recording {row.recording} are in {split} and {row.split}; "
                "all must be in one, or training hears what the test asks",
            )
        else:
            self._rows[row.file] = row
            self._place_of[row.file] = place
            return True
        return False


def read_table(
    path: Path, columns: Sequence[str], fault: Fault, delimiter: str = ",", *, has_header: bool = True
) -> Iterator[tuple[str, dict[str, str]]]:
    """Each line's place, to be named in messages, and what it has under the table's header.

    The header is the table's own, or `columns` where it has none. With or without a byte order mark, with
    any line ends. A file that is no such table gives no line, and a line of another length is left out.
    """
    if not path.is_file():
        fault(str(path), "is not there")
        return
    lines = read_cells(path, fault, delimiter=delimiter)
    header = next(lines, (0, []))[1] if has_header else list(columns)
    missing = [name for name in columns if name not in header]
    if missing:
        fault(str(path), f"has no column {', '.join(missing)}; needs {', '.join(columns)}")
        return
    table = str(path)  # in text once, not for each line
    for number, cells in lines:
        place = f"{table}, line {number}"
        row = dict(zip(header, cells, strict=False))
        absent = [name for name in columns if name not in row]
        if absent:
            fault(place, f"has no {absent[0]}; is the line cut short?")
        elif len(cells) > len(header):
            fault(place, f"has more cells than the table has columns ({len(header)})")
        else:
            yield place, row


def read_cells(path: Path, fault: Fault, **style: Any) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that has any; `style` is csv's.

    A quote that is not closed costs its own line, and not all to the next quote. A file whose first line
    cannot be read is no table.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        numbered, again = enumerate(file, start=1), deque[tuple[int, str]]()
        lines = iter(lambda: again.popleft() if again else next(numbered, None), None)
        for number, line in lines:
            try:
                line.encode()
                cells = next(csv.reader((line,), strict=True, **style))
            except (UnicodeEncodeError, csv.Error) as error:
                if number == 1:
                    fault(str(path), f"is no table of separated UTF-8 text ({error})")
                    return
                place = f"{path}, line {number}"
                if isinstance(error, UnicodeEncodeError):
                    fault(place, "is no UTF-8 text; save the table in UTF-8")
                    continue
                closed, taken = _to_the_quote(line, lines, style)
                if closed:
                    fault(place, "has a cell that goes on in the line below; take out the line break")
                else:
                    again.extendleft(reversed(taken))
                    fault(place, f"has a quote that is not closed before a separator ({error})")
            else:
                if cells:
                    yield number, cells


def _to_the_quote(
    line: str, lines: Iterator[tuple[int, str]], style: dict[str, Any]
) -> tuple[bool, list[tuple[int, str]]]:
    """Whether a line's open quote is closed in lines behind it, and those that were taken for that."""
    taken: list[tuple[int, str]] = []

    def text() -> Iterator[str]:
        yield line
        for entry in lines:
            taken.append(entry)
            yield entry[1]

    try:
        next(csv.reader(text(), strict=True, **style))
    except csv.Error:  # also for a cell that grows too long
        return False, taken
    return True, taken


def is_name(name: str) -> bool:
    """Whether it is a file's name, without any folder."""
    return name not in {"", ".."} and PurePosixPath(name).name == name


def is_inside(file: str) -> bool:
    """Whether a path from a table stays below the copy's root."""
    path = PurePosixPath(file)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in file
