"""What is seen while a study runs: a line for each running trial and one for the study."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from workbench.study.cost import duration
from workbench.study.interruption import Interruption
from workbench.study.ledger import Assignment, Ledger
from workbench.study.trial_storage import Ended
from workbench.study.tune import Watcher

TRUST_SECONDS = 60.0  # that the plan's rate counts for, beside what is seen
DRAW_SECONDS = 0.5  # between redraws on a terminal: to reckon the time that is left takes some
PLAIN_SECONDS = 20.0  # between status lines where the output is no terminal


class Progress(Watcher):
    """Redraws in place on a terminal; prints plain lines elsewhere."""

    def __init__(
        self,
        ledger: Ledger,
        console: Console,
        begin: Callable[[Assignment], None],
        record: Callable[[int], Ended | None],
        interruption: Interruption,
        expected_rate: float | None = None,
    ) -> None:
        """`begin` is told of each trial before a worker has it.

        `record(number)` writes an ended trial away and says how it ended.
        `expected_rate` is the plan's: work, in the ledger's unit, that all workers do a second.
        """
        self._ledger = ledger
        self._interruption = interruption
        self._stopping = False
        self._console = console
        self._begin = begin
        self._record = record
        self._expected_rate = expected_rate
        self._running: dict[int, _Running] = {}
        self._began = self._printed = time.monotonic()
        self._work_done = 0.0  # since then, in the ledger's unit
        self._counts = Counter(ended.state for ended in ledger.ended())
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back."""
        if self._console.is_terminal:
            self._live.stop()

    def started(self, assignment: Assignment) -> None:
        self._begin(assignment)
        self._running[assignment.number] = _Running(assignment)
        self._draw(at_once=True)

    def progress(self, number: int, stage: str, step: int, steps: int) -> None:
        running = self._running[number]
        running.stage, running.step, running.steps = stage, step, steps
        share = self._work_of(running)[stage] / steps
        before = running.counted.get(stage, step - 1)  # a stage that goes on from a checkpoint begins late
        self._work_done += (step - before) * share
        running.counted[stage] = step

    def ended(self, number: int) -> None:
        running = self._running.pop(number)
        ended = self._record(number)
        if ended is None:  # its worker died, and it waits to be taken up again
            return
        self._counts = Counter(ended.state for ended in self._ledger.ended())
        for stage, whole in self._work_of(running).items():
            if stage in running.counted:
                self._work_done += whole * (1 - running.counted[stage] / running.steps_of(stage))
        if "finetune" in running.counted:
            self._work_done += self._work_of(running)["evaluate"]
        label = running.assignment.planned.trial.label
        reason = f": {ended.reason}" if ended.reason else ""
        seconds = time.monotonic() - running.began
        self._console.print(
            f"{ended.state:8s} {number:4d}  {label}  {seconds:.0f} s{reason}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def tick(self) -> None:
        if self._interruption.requested and not self._stopping:
            self._stopping = True
            self.note("stopping: running trials save where they are; Ctrl-C again stops at once")
        self._draw(at_once=False)

    def _draw(self, *, at_once: bool) -> None:
        since = time.monotonic() - self._printed
        if self._console.is_terminal and (at_once or since >= DRAW_SECONDS):
            self._printed = time.monotonic()
            lines = [running.line() for running in self._running.values()]
            self._live.update(Group(*(Text(line) for line in [*lines, self._status()])))
        elif not self._console.is_terminal and not at_once and since >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            for line in [*(r.line() for r in self._running.values()), self._status()]:
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _status(self) -> str:
        done = self._counts["complete"] + self._counts["pruned"]
        return (
            f"study    {done} of {self._ledger.num_trials} done, {len(self._running)} running, "
            f"{self._counts['failed']} failed, {self._time_left()}"
        )

    def _time_left(self) -> str:
        elapsed = time.monotonic() - self._began
        done, seconds = self._work_done, elapsed
        if self._expected_rate is not None:  # the first updates of a worker say little by themselves
            done, seconds = done + TRUST_SECONDS * self._expected_rate, seconds + TRUST_SECONDS
        elif done == 0 or elapsed < 5:
            return "time left: measuring"
        left = self._ledger.work_left() - sum(self._done_of(running) for running in self._running.values())
        return f"about {duration(max(0.0, left) * seconds / done)} left"

    def _done_of(self, running: _Running) -> float:
        """Of a running trial's work, what it is past in stages that still count as work."""
        missing = {stage.kind for stage in running.assignment.planned.stages.missing(self._ledger.store.has)}
        return sum(
            self._work_of(running)[stage] * step / running.steps_of(stage)
            for stage, step in running.counted.items()
            if stage in missing
        )

    def _work_of(self, running: _Running) -> Mapping[str, float]:
        return self._ledger.work(running.assignment.planned.trial.config)


class _Running:
    """A trial that a worker is at."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.began = time.monotonic()
        self.stage, self.step, self.steps = "starting", 0, 0
        self.counted: dict[str, int] = {}  # updates of each stage already in the study's work

    def steps_of(self, stage: str) -> int:
        config = self.assignment.planned.trial.config
        if stage == "pretrain" and config.pretraining is not None:
            return config.pretraining.steps
        return config.finetuning.steps

    def line(self) -> str:
        where = f"{self.stage} {self.step}/{self.steps}" if self.steps else self.stage
        return f"running  {self.assignment.number:4d}  {self.assignment.planned.trial.label}  {where}"
