"""Writing to disk: files that are there whole, and what is said when a disk does not take them."""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """An OSError of the block names the folder and what to do: numpy's own names neither."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{folder}: {error}; make room there, or mend it: the same command goes on") from error


def npy(array: np.ndarray) -> bytes:
    """What an `.npy` file of it holds."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def publish(content: bytes, path: Path) -> None:
    """A file that is there whole, or not at all."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
