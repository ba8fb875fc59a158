"""What a study's finished trials say of each part of a claim, before all that the study tests is ruled on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.contrasts import NotTested, Trials, compare, contrasts, lacking_words, sides
from analysis.label_curves import Curves, NoCurves, study_curves
from analysis.label_reduction import LabelReduction, label_reduction
from analysis.needs import Saving
from analysis.rulings import Evidence, Ruling, judge_equivalent, judge_greater, judge_rising
from workbench.study.claims import Equivalent, FewerLabels, Greater, Part, Rising


def examine(trials: Trials, part: Part, table: pd.DataFrame) -> Evidence:
    """One part, before it is ruled on; a part that cannot be tested says why."""
    try:
        match part:
            case Greater():
                return _examine_greater(trials, part)
            case Equivalent():
                found, note = compare(trials, *contrasts(trials, part)[0])
                return _with_note(judge_equivalent(part, found), note)
            case Rising():
                levels = trials.levels(part.regime)
                if len(levels) < 3:
                    raise NotTested(f"to rise with every level takes three, here are {len(levels)}")
                found_at = [compare(trials, of, than) for of, than in contrasts(trials, part)]
                notes = "; ".join(dict.fromkeys(note for _, note in found_at if note))
                return _with_note(judge_rising(part, [found for found, _ in found_at]), notes)
            case FewerLabels():
                return _examine_labels(trials, part, table)
    except ValueError as error:  # NotTested, or figures that an estimator refuses
        return Evidence(part=part, effect=None, note=f"not tested: {error}")


def _examine_greater(trials: Trials, part: Greater) -> Evidence:
    """Of several levels that `any` may be, the surest, corrected for their number; all must fall short.

    Where all do, what is shown is of the one that does so least surely.
    """
    judged = []
    ways = trials.resolve([*part.of, *part.than])
    for way in ways:
        of, than = sides(part, way)
        found, note = compare(trials, of, than, part.scale)
        chosen = f"any: {_level_for_any(part, way)}, of {len(ways)}" if len(ways) > 1 else ""
        judged.append(_with_note(judge_greater(part, found), "; ".join(filter(None, (chosen, note)))))
    if len(judged) == 1 or all(math.isnan(one.p_support) for one in judged):
        return judged[0]
    best = min(one.p_support for one in judged if not math.isnan(one.p_support))
    if best < 1:
        shown = next(one for one in judged if one.p_support == best)
    else:  # all fall short: the one that does so least surely is what contradicting them waits for
        shown = max(judged, key=lambda one: np.nan_to_num(one.p_contradict, nan=2.0))
    return replace(
        shown,
        correction=len(judged) if best < 1 else 1.0,
        p_support=min(1.0, len(judged) * best),
        p_contradict=float(np.max([one.p_contradict for one in judged])),  # NaN: one was not tested
    )


def _level_for_any(part: Greater, way: Sequence[tuple[str, Any]]) -> Any:
    names = [*part.of, *part.than]
    return next(level for name, (_, level) in zip(names, way, strict=True) if name.endswith("/any"))


def _with_note(evidence: Evidence, note: str) -> Evidence:
    return replace(evidence, note="; ".join(filter(None, (evidence.note, note))))


def _examine_labels(trials: Trials, part: FewerLabels, table: pd.DataFrame) -> Evidence:
    record = trials.record
    try:
        curves = study_curves(record, table, trials.predictions)
    except NoCurves as error:
        raise NotTested(str(error)) from None
    if {len(curves.scratch_labels), len(curves.pretrained_labels)} != {len(record.levels)}:
        raise NotTested("some label counts have no finished trial")
    trials.used |= set(trials.done["run_id"])
    found, by_replicates = (
        label_reduction(
            curves.scratch_labels,
            curves.scratch,
            curves.pretrained_labels,
            curves.pretrained,
            share=part.share,
            overlap=curves.overlap,
            draws=draws,
        )
        for draws in (curves.draws, None)
    )
    low, high = found.reduction_low, found.reduction_high
    ruling = Ruling.INCONCLUSIVE
    if low >= part.at_least:
        ruling = Ruling.SUPPORTED
    elif high < part.at_least:
        ruling = Ruling.CONTRADICTED
    notes = [f"over {curves.over}; not corrected for other tests"]
    if found.reduction is None:
        notes.insert(0, f"{found.reach} within the label counts measured")
    if found.reference_low < found.scratch_labels:
        notes.append(
            f"scratch is not told apart from its score with {found.scratch_labels:,.0f} labels from "
            f"{found.reference_low:,.0f} on, and the least saving is of these"
        )
    if curves.left_out:
        notes.append(lacking_words(len(curves.left_out)))
    return Evidence(
        part=part,
        effect=_saving(found, by_replicates, part.at_least, curves),
        ruling=ruling,
        gap=math.nan if found.reduction is None else abs(found.reduction - part.at_least),
        note="; ".join(notes),
    )


def _saving(found: LabelReduction, by_replicates: LabelReduction, at_least: float, curves: Curves) -> Saving:
    of_both, of_replicates = _half_width(found, at_least), _half_width(by_replicates, at_least)
    of_clips = math.inf if of_both == math.inf else math.sqrt(max(0.0, of_both**2 - of_replicates**2))
    return Saving(
        mean=math.nan if found.reduction is None else found.reduction,
        low=found.reduction_low,
        high=found.reduction_high,
        n=found.n,
        by_replicates=of_replicates,
        by_clips=of_clips,
        clips=curves.draws.clips if curves.draws else 0,
        overlap=curves.overlap,
    )


def _half_width(found: LabelReduction, at_least: float) -> float:
    """On the side of what is asked for; infinite where the label counts do not bound it."""
    mean = found.reduction
    if mean is None or (found.labels_low == 0 and mean < at_least):
        return math.inf
    return mean - found.reduction_low if mean >= at_least else found.reduction_high - mean
