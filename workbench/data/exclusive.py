"""One process at a time in a folder, whichever machine of a shared file system it is on."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOCK = ".lock"


@contextlib.contextmanager
def exclusive(folder: Path, *, wait: bool) -> Iterator[None]:
    """While entered, no other process enters with this folder, which is made.

    Another one is waited for, or raises BlockingIOError. The lock is of a file in the folder, there while it
    is held: NFS locks files only, and what is beside the folder is the user's.
    """
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)  # whoever was waited for may have removed it
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(path, file):
                continue  # whoever was waited for has removed it; another process may be in with a new one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
