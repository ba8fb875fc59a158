"""What one study has found, read once for all parts of a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from analysis.completeness import Completeness
from analysis.detectable import Detectable, study_detectable
from analysis.label_curves import Curves, NoCurves, study_curves
from analysis.predictions import Predictions
from analysis.stored import StoredStages
from analysis.verdicts import Verdict, claims_of, study_verdicts
from workbench.study.record import StudyRecord
from workbench.study.results import trial_table


@dataclass(frozen=True)
class Findings:
    """A study's trials, finished or not, and the verdicts that they give."""

    record: StudyRecord
    table: pd.DataFrame
    verdicts: list[Verdict]
    predictions: Predictions
    detectable: Detectable | None = None
    commits: list[str] = field(default_factory=list)  # that computed the stages behind it, in order of time

    @classmethod
    def read(cls, record: StudyRecord, root: Path, stages: StoredStages) -> Findings:
        """From the results below `root`."""
        table = trial_table(record, root)
        predictions = Predictions(stages, record.metric)
        verdicts = study_verdicts(record, table, predictions)
        detectable = study_detectable(record, table, predictions)
        keys = table["key"] if len(table) else ()
        return cls(record, table, verdicts, predictions, detectable, stages.commits(keys))

    @cached_property
    def done(self) -> pd.DataFrame:
        """The finished trials."""
        return self.table[self.table.state == "complete"] if len(self.table) else self.table

    @cached_property
    def completeness(self) -> Completeness:
        return Completeness.of(self.record, self.table)

    @property
    def unread(self) -> list[str]:
        """Why claims were left out, a line each."""
        return claims_of(self.record)[1]

    @cached_property
    def curves(self) -> Curves | None:
        """Both arms over label counts; None of a study that has none."""
        try:
            return study_curves(self.record, self.table, self.predictions)
        except NoCurves:
            return None

    def stage_seconds(self, stages: StoredStages) -> tuple[dict[str, float], float]:
        """Of each stage once, by its key; and of all trials, had each run its stages by itself.

        A trial that was pruned or has failed left no evaluation: it counts with the time of its last run.
        """
        once: dict[str, float] = {}
        alone = 0.0
        for key in self.done["key"] if len(self.done) else ():
            for facts in stages.lineage(key):
                once[facts["key"]] = facts["seconds"]
                alone += facts["seconds"]
        early = self.table[self.table.state != "complete"] if len(self.table) else self.table
        for row in early.to_dict("records"):
            once[row["run_id"]] = row["seconds"]
            alone += row["seconds"]
        return once, alone
