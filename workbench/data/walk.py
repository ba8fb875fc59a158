"""Files below a folder, whatever links there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(root: Path) -> Iterator[tuple[str, str]]:
    """Folder ("", or with a "/" behind it) and name of every file; what is hidden is not looked at.

    Links are followed, and every folder is gone through once, by whatever names links give it: by its own
    where it has one beside theirs. Raises OSError for a folder that cannot be read.
    """
    folders, seen = [""], {_identity(root.stat())}
    while folders:
        folder = folders.pop()
        below = []
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    below.append((entry.is_symlink(), entry.name, _identity(entry.stat())))
                else:
                    yield folder, entry.name
        new = []
        for _, name, inode in sorted(below):
            if inode not in seen:
                seen.add(inode)
                new.append(f"{folder}{name}/")
        folders += sorted(new, reverse=True)


def is_a_line(path: str) -> bool:
    """Whether it can stand in a prepared set's lists."""
    return path.splitlines() == [path] and path.encode(errors="ignore").decode() == path


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
