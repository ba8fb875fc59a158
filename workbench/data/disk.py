"""What is said when a disk does not take what is written to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """An OSError of the block names the folder and what to do: numpy's own names neither."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{folder}: {error}; make room there, or mend it: the same command goes on") from error
