"""How far a long command is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from typing import Literal

from rich import progress
from rich.console import Console
from rich.filesize import decimal

PLAIN_SECONDS = 20.0  # between lines of progress where the output is no terminal


class Display:
    """A bar for each file on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console, *, unit: Literal["bytes", "clips"] = "bytes") -> None:
        self._console = console
        amount: tuple[progress.ProgressColumn, ...] = (progress.MofNCompleteColumn(),)
        if unit == "bytes":
            amount = (progress.DownloadColumn(), progress.TransferSpeedColumn())
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            *amount,
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._said = decimal if unit == "bytes" else "{:,} clips".format
        self._name: str | None = None
        self._printed = time.monotonic()

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, name: str, done: int, total: int | None) -> None:
        if self._console.is_terminal:
            self._draw(name, done, total)
        elif time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            of = f" of {self._said(total)}" if total is not None else ""
            self.line(f"{name}: {self._said(done)}{of}")

    def _draw(self, name: str, done: int, total: int | None) -> None:
        if name != self._name:  # one file at a time
            for task in self._bars.task_ids:
                self._bars.remove_task(task)
            self._bars.add_task(name, total=total)
            self._name = name
        self._bars.update(self._bars.task_ids[0], completed=done, total=total)
