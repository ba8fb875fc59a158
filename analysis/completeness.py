"""How much of a study has run: figures of half of it must not look like those of the whole."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from workbench.study.record import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Completeness:
    """How many trials a study has, and how they ended.

    given_up: by a search's pruner, as it is meant to.
    """

    planned: int
    finished: int
    failed: int
    given_up: int

    @classmethod
    def of(cls, record: StudyRecord, table: pd.DataFrame) -> Completeness:
        """Of a study and its `trial_table`."""
        ended = table["state"].value_counts() if len(table) else pd.Series(dtype=int)
        planned = record.space["num_trials"] if record.space else len(record.trials)
        return cls(
            planned=max(planned, len(table)),  # a search may have had more trials before
            finished=int(ended.get("complete", 0)),
            failed=int(ended.get("failed", 0)),
            given_up=int(ended.get("pruned", 0)),
        )

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to run, or has failed."""
        return self.finished + self.given_up == self.planned

    @property
    def share(self) -> str:
        """For a column of a table: trials that ended as they were meant to, of all."""
        return f"{self.finished + self.given_up} of {self.planned}"

    def __str__(self) -> str:
        words = [f"{self.finished} of {self.planned} trials finished"]
        words += [f"{self.failed} failed"] if self.failed else []
        words += [f"{self.given_up} given up early by the search"] if self.given_up else []
        return ", ".join(words)
