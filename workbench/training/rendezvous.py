"""Trials in threads of one process, trained together whenever each of them has come to a training.

A trial is written as if it were alone: it loads data, makes a model, trains, evaluates. Only one thread runs
at a time, for new models draw from torch's global random state; and at a training each waits for the
others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from workbench.data.clips import DataError
from workbench.settings import ConfigError
from workbench.training.loop import Course, train
from workbench.training.pack import End, train_together

ResultT = TypeVar("ResultT")
History = list[dict[str, float]]


class PackFailed(RuntimeError):
    """Training together has failed as a whole; a trial of it may well train alone, from its checkpoint."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}")


class Rendezvous:
    """`run` starts the trials; each trains by `train`, which is a run's way to train."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self.num_trials = 0
        self._running = 0  # threads that have not ended
        self._waiting: list[_Waiting] = []

    def run(self, jobs: Sequence[Callable[[], ResultT]]) -> list[ResultT | BaseException]:
        """What each returns or raises."""
        results: list[Any] = [None] * len(jobs)
        self.num_trials = self._running = len(jobs)

        def work(number: int) -> None:
            with self._turn:
                try:
                    results[number] = jobs[number]()
                except BaseException as error:
                    results[number] = error
                finally:
                    self._running -= 1
                    self._train_if_all_are_here()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def train(self, course: Course[Any]) -> History:
        """As `loop.train`; in a thread of `run`. Raises PackFailed besides."""
        own = _Waiting(course)
        self._waiting.append(own)
        self._train_if_all_are_here()
        if own.result is None:
            self._turn.release()
            own.done.wait()
            self._turn.acquire()
        if isinstance(own.result, BaseException):
            raise own.result
        assert own.result is not None
        return own.result

    def _train_if_all_are_here(self) -> None:
        if not self._waiting or len(self._waiting) < self._running:
            return
        groups: dict[Hashable, list[_Waiting]] = {}
        for number, one in enumerate(self._waiting):
            key = one.course.task.pack_key
            groups.setdefault(number if key is None else key, []).append(one)
        self._waiting = []
        for group in groups.values():
            _train_group(group)
            for one in group:
                one.done.set()


class _Waiting:
    def __init__(self, course: Course[Any]) -> None:
        self.course = course
        self.done = threading.Event()
        self.result: History | BaseException | None = None


def _train_group(group: Sequence[_Waiting]) -> None:
    """Each of the group raises in its own thread what is found here."""
    try:
        if len(group) == 1:
            group[0].result = train(group[0].course)
        else:
            for one, result in zip(group, _together([one.course for one in group]), strict=True):
                one.result = result
    except BaseException as error:
        for one in group:
            one.result = error


def _together(courses: Sequence[Course[Any]]) -> Sequence[End]:
    try:
        return train_together(courses)
    except (OSError, DataError, ConfigError):  # a full disk, an unreadable file, no compiler: as if alone
        raise
    except Exception as error:
        raise PackFailed(error) from error
