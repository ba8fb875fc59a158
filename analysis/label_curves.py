"""Both arms of a study over label counts: scores, their differences, and the labels that pre-training saves.

Of studies that vary `data.label_fraction` in the regimes scratch and pretrained.
`analysis/label_reduction.py` has the estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.estimators import (
    Comparison,
    FloatArray,
    crossed_comparison,
    holm,
    mean_interval,
    paired_comparison,
)
from analysis.label_reduction import ClipDraws, LabelReduction, label_reduction
from analysis.predictions import Predictions
from analysis.replicates import by_replicate, replicate_names, with_fold_numbers
from workbench.study.record import StudyRecord
from workbench.study.results import best_tuned

AXIS = "data.label_fraction"
SCRATCH, PRETRAINED = "scratch", "pretrained"
SHARES = (1.0, 0.97)  # of scratch's score: exact, and what the paper calls "approximately matches"
BOUNDED_BY_ONE = ("mAP", "macro_auc", "lwlrap", "accuracy")


class NoCurves(ValueError):
    """A table that has not both curves."""


@dataclass(frozen=True)
class Curves:
    """Both arms of a study.

    scratch (n, S), pretrained (n, P): test scores; row i is replicate i of both.
    left_out: (seed, fold) that lack a trial.
    overlap: of test folds, where these are the replicates, as in `mean_interval`.
    missing: label counts of the study at which an arm has no finished trial at all.
    draws: of the test clips that all trials share; None where replicates have their own, or there is but one.
    """

    scratch_labels: FloatArray
    scratch: FloatArray
    pretrained_labels: FloatArray
    pretrained: FloatArray
    replicates: list[str]
    left_out: list[str]
    overlap: float = 0.0
    missing: list[str] = field(default_factory=list)
    draws: ClipDraws | None = None

    @property
    def over(self) -> str:
        """What the intervals are over, in words."""
        if self.overlap:
            return "test folds, whose training sets overlap, as is allowed for"
        return f"replicates and {self.draws.clips:,} test clips" if self.draws else "replicates alone"


def is_suitable(record: StudyRecord) -> bool:
    """Whether a study compares scratch with pre-trained over label counts."""
    return AXIS in record.axes and {SCRATCH, PRETRAINED} <= set(record.regimes) and not record.search


def study_curves(record: StudyRecord, table: pd.DataFrame, predictions: Predictions) -> Curves:
    """The finished trials of `table` whose seed and fold have every label count in both arms, by replicates.

    Raises:
        NoCurves: not such a study, no such replicate, fewer than two label counts, several trials to one,
            none of scratch with the most labels, which the reduction is relative to, or predictions deleted.
    """
    if not is_suitable(record):
        raise NoCurves(f"{record.id}: does not vary {AXIS} in the regimes {SCRATCH} and {PRETRAINED}")
    metric = f"test/{record.metric}"
    if not len(table) or not (table["state"] == "complete").any():
        raise NoCurves(f"{record.id}: no finished trial")
    done = best_tuned(record, table[table["state"] == "complete"])
    done = with_fold_numbers(done)
    place = ["regime", "seed", "fold", AXIS]
    if done.duplicated(place).any():
        raise NoCurves(
            f"{record.id}: several trials to a label count and seed; it varies something else, too"
        )
    arms, keys = {}, {}
    for regime in (SCRATCH, PRETRAINED):
        rows = done[done["regime"] == regime]
        arms[regime] = rows.pivot(index=["seed", "fold"], columns=AXIS, values=metric)
        keys[regime] = rows.pivot(index=["seed", "fold"], columns=AXIS, values="key")
    both = pd.concat(arms, axis=1)
    complete = both.dropna()
    if not len(complete) or arms[PRETRAINED].shape[1] < 2 or not arms[SCRATCH].shape[1]:
        raise NoCurves(
            f"{record.id}: no seed has finished every label count in both regimes, of two or more; "
            "run the study to its end"
        )
    _refuse_without_reference(record, arms[SCRATCH])
    counts = done.groupby(AXIS)["labelled_clips"].mean()
    if counts.duplicated().any():
        same = counts[counts.duplicated(keep=False)]
        fractions_of = ", ".join(f"{fraction:g}" for fraction in same.index)
        raise NoCurves(
            f"{record.id}: {AXIS} {fractions_of} are {same.iloc[0]:,.0f} labelled clips each; "
            "name fractions that differ in clips"
        )
    fractions = {regime: counts[complete[regime].columns].sort_values() for regime in arms}
    scores, overlap = by_replicate(complete)
    draws = None
    if len(scores) > 1 and not overlap:
        shown = {regime: keys[regime].loc[complete.index, fractions[regime].index] for regime in arms}
        draws = _clip_draws(record, shown, predictions)
    return Curves(
        fractions[SCRATCH].to_numpy(float),
        scores[SCRATCH][fractions[SCRATCH].index].to_numpy(float),
        fractions[PRETRAINED].to_numpy(float),
        scores[PRETRAINED][fractions[PRETRAINED].index].to_numpy(float),
        replicate_names(scores),
        [
            f"seed {seed}" + (f" fold {fold}" if fold >= 0 else "")
            for seed, fold in both.index.difference(complete.index)
        ],
        overlap,
        [
            f"{regime} with {fraction:.3g} of the labels"
            for regime, found in arms.items()
            for fraction in record.levels
            if fraction not in found
        ],
        draws,
    )


def _clip_draws(
    record: StudyRecord, keys: dict[str, pd.DataFrame], predictions: Predictions
) -> ClipDraws | None:
    """Of the trials with these keys (n, labels) in each arm; None where they were not judged on one set."""
    clips = predictions.shared_clips(key for table in keys.values() for key in table.to_numpy().ravel())
    if clips is None:
        raise NoCurves(
            f"{record.id}: predictions that intervals need were deleted; the study's command makes them again"
        )
    if clips < 2:
        return None
    redrawn = {
        regime: np.stack([[predictions.resampled(key) for key in row] for row in table.to_numpy()])
        for regime, table in keys.items()
    }  # (n, labels, R)
    if not all(np.isfinite(values).all() for values in redrawn.values()):
        raise NoCurves(
            f"{record.id}: {clips} test clips are too few, for {record.metric} is not defined on every redraw"
        )
    scratch, pretrained = (np.moveaxis(redrawn[regime], -1, 0) for regime in (SCRATCH, PRETRAINED))
    return ClipDraws(scratch, pretrained, clips)


def _refuse_without_reference(record: StudyRecord, scratch: pd.DataFrame) -> None:
    """Else fewer labels would become the reference, and the reduction be of those."""
    most = max(record.levels, default=0)
    if record.levels and most not in scratch:
        raise NoCurves(
            f"{record.id}: {SCRATCH} has no finished trial with {most:.3g} of the labels, the reference of "
            "the reduction; run the study to its end"
        )


def level_table(curves: Curves) -> pd.DataFrame:
    """A row a label count: mean and 95 % interval of each arm, and of pretrained - scratch where both are.

    An arm's interval is over replicates, the difference's over test clips as well, where all share them. `p`
    is of no difference, `p_holm` corrected for the study's label counts.
    """
    arms = {
        SCRATCH: dict(zip(curves.scratch_labels, curves.scratch.T, strict=True)),
        PRETRAINED: dict(zip(curves.pretrained_labels, curves.pretrained.T, strict=True)),
    }
    rows = []
    for labels in sorted(arms[SCRATCH] | arms[PRETRAINED]):
        row: dict[str, float] = {"labels": labels, "n": len(curves.replicates)}
        for name, scores in arms.items():
            if labels in scores:
                interval = mean_interval(scores[labels], overlap=curves.overlap)
                row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        if all(labels in scores for scores in arms.values()):
            found = _difference(curves, labels)
            row["difference"] = found.mean
            if found.has_spread:
                row |= {"difference_low": found.low, "difference_high": found.high, "p": found.p_value}
        rows.append(row)
    levels = pd.DataFrame(rows).reindex(columns=LEVEL_COLUMNS)
    tested = levels["p"].notna()
    if tested.any():
        levels.loc[tested, "p_holm"] = holm(levels.loc[tested, "p"])
    return levels


def _difference(curves: Curves, labels: float) -> Comparison:
    of = int(np.flatnonzero(curves.pretrained_labels == labels)[0])
    than = int(np.flatnonzero(curves.scratch_labels == labels)[0])
    scratch, pretrained = curves.scratch[:, than], curves.pretrained[:, of]
    if curves.draws is None:
        return paired_comparison(scratch, pretrained, overlap=curves.overlap)
    redrawn = curves.draws.pretrained[..., of] - curves.draws.scratch[..., than]
    return crossed_comparison(pretrained - scratch, redrawn, curves.draws.clips)


LEVEL_COLUMNS = [
    "labels",
    *(f"{arm}{end}" for arm in (SCRATCH, PRETRAINED, "difference") for end in ("", "_low", "_high")),
    "p",
    "p_holm",
    "n",
]


def study_reductions(record: StudyRecord, curves: Curves) -> list[LabelReduction]:
    """One for each of `SHARES`."""
    return [
        label_reduction(
            curves.scratch_labels,
            curves.scratch,
            curves.pretrained_labels,
            curves.pretrained,
            share=share,
            overlap=curves.overlap,
            ceiling=1.0 if record.metric in BOUNDED_BY_ONE else None,
            draws=curves.draws,
        )
        for share in SHARES
    ]


def reduction_table(reductions: list[LabelReduction]) -> pd.DataFrame:
    """A row a reading; an open end of an interval is empty, as are labels that no count reaches."""
    rows = []
    for found in reductions:
        row = vars(found) | {
            "reach": str(found.reach),
            "reduction": found.reduction,
            "reduction_low": found.reduction_low,
            "reduction_high": found.reduction_high,
        }
        if found.labels_low == 0:
            row |= {"labels_low": None, "reduction_high": None}
        if found.labels_high == math.inf:
            row |= {"labels_high": None, "reduction_low": None}
        rows.append(row)
    return pd.DataFrame(rows)
