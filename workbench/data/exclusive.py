"""One process at a time in a folder, whichever machine of a shared file system it is on."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(folder: Path, *, wait: bool) -> Iterator[None]:
    """While entered, no other process enters with this folder, which is made.

    Another one is waited for, or raises BlockingIOError. The lock is of a file beside the folder: NFS locks
    files only, and what is in the folder is the user's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    with folder.with_name(f".{folder.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
