"""What ends a study before its last trial; Ctrl-C: once to stop cleanly, twice to stop now."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import fsspec

ASK_SECONDS = 1.0  # between a worker's looks at the flag


class StudyBusy(RuntimeError):
    """Another process runs this study."""


class StudyStopped(RuntimeError):
    """Something other than a trial has failed; the same command goes on with what is left."""


class StudyInterrupted(RuntimeError):
    """Ctrl-C; the study has ended cleanly. `finished`: nothing of it is left; `well`: and no trial failed."""

    def __init__(self, *, finished: bool, well: bool = False) -> None:
        super().__init__()
        self.finished, self.well = finished, well


class Interruption:
    """While entered, a first SIGINT or SIGTERM raises a flag that workers see; a second, KeyboardInterrupt.

    Workers look at a file: it reaches them on any node, also while they compute.
    """

    def __init__(self, flag: str) -> None:
        """`flag` is a path or fsspec URL that every worker sees."""
        self.flag = flag
        self.requested = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        self._lower()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._lower()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        files, path = fsspec.core.url_to_fs(self.flag)
        files.touch(path)

    def _lower(self) -> None:
        files, path = fsspec.core.url_to_fs(self.flag)
        if files.exists(path):
            files.rm(path)


def is_flagged(flag: str) -> Callable[[], bool]:
    """A function that tells a worker whether the flag is up; it looks once a second at most."""
    files, path = fsspec.core.url_to_fs(flag)
    looked, up = 0.0, False

    def flagged() -> bool:
        nonlocal looked, up
        now = time.monotonic()
        if not up and now - looked >= ASK_SECONDS:
            looked = now
            up = files.exists(path)
        return up

    return flagged
