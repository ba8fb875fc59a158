"""What difference a study's choice of seeds, folds and test clips can be expected to show."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.contrasts import Contrast, NotTested, Trials, compare, contrasts
from analysis.estimators import Comparison
from analysis.predictions import Predictions
from analysis.verdicts import claims_of
from workbench.study.claims import Claim, Greater
from workbench.study.power import detectable_difference
from workbench.study.record import StudyRecord
from workbench.study.results import best_tuned


@dataclass(frozen=True)
class Detectable:
    """What one comparison of two arms finds with 80 % power at 95 % confidence, in the metric's unit.

    by_replicates, by_clips: what it would find without the other's noise; 0 where no test clips are shared.
    n: replicates of the comparison that has fewest. clips: that all of them share.
    """

    difference: float
    by_replicates: float
    by_clips: float
    n: int
    clips: int
    of_folds: bool

    @classmethod
    def by(cls, found: Sequence[Comparison]) -> Detectable:
        """By the noise of these comparisons, as root mean squares."""
        n, overlap = min(one.n for one in found), found[0].overlap
        deviation = float(np.sqrt(np.mean([one.deviation**2 for one in found])))
        clip_error = float(np.sqrt(np.mean([one.clip_error**2 for one in found])))
        return cls(
            difference=detectable_difference(n, deviation, overlap=overlap, clip_error=clip_error),
            by_replicates=detectable_difference(n, deviation, overlap=overlap),
            by_clips=detectable_difference(n, 0.0, clip_error=clip_error),
            n=n,
            clips=max(one.clips for one in found),
            of_folds=overlap > 0,
        )

    def __str__(self) -> str:
        replicates = f"{self.n} {'test folds, which share training clips,' if self.of_folds else 'seeds'}"
        text = (
            f"By the noise of its own comparisons {replicates} can be expected to show a difference of "
            f"{self.difference:.3f} between two arms (80 % power)"
        )
        if self.by_clips:
            text += (
                f"; {self.by_replicates:.3f}, were there no noise of the {self.clips:,} test clips, and "
                f"{self.by_clips:.3f}, were there as many seeds as one likes"
            )
        return f"{text}. Claims, which are corrected for each other, need more."


def study_detectable(record: StudyRecord, table: pd.DataFrame, predictions: Predictions) -> Detectable | None:
    """By the pairs of arms that the study's claims compare, or else by neighbouring levels of a regime.

    None where no pair has two replicates, and of a search.
    """
    done = table[table.state == "complete"] if len(table) else table
    if not len(done) or record.search:
        return None
    trials = Trials(record, best_tuned(record, done), predictions)
    claims, _ = claims_of(record)
    found = _compared(trials, _claimed(trials, list(claims.values()))) or _compared(
        trials, _neighbours(trials)
    )
    return Detectable.by(found) if found else None


def _compared(trials: Trials, pairs: Iterator[Contrast]) -> list[Comparison]:
    found = []
    for of, than in pairs:
        try:
            one, _ = compare(trials, of, than)
        except ValueError:  # NotTested, or figures that an estimator refuses
            continue
        if one.n > 1:
            found.append(one)
    return found


def _claimed(trials: Trials, claims: Sequence[Claim]) -> Iterator[Contrast]:
    seen = []
    for part in itertools.chain.from_iterable(claim.parts for claim in claims):
        if isinstance(part, Greater) and part.scale == "log":
            continue  # in another unit
        try:
            pairs = contrasts(trials, part)
        except NotTested:
            continue
        for of, than in pairs:
            if len(of) == 1 and {*of, *than} not in seen:
                seen.append({*of, *than})
                yield of, than


def _neighbours(trials: Trials) -> Iterator[Contrast]:
    for regime in trials.record.regimes:
        try:
            levels = trials.levels(regime)
        except NotTested:
            return
        for before, after in itertools.pairwise(levels):
            yield [(regime, after)], [(regime, before)]
