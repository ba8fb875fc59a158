"""What a study's seeds can be expected to show, by the noise of earlier results: told before it runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.study.claims import Claim, FewerLabels, Rising
from workbench.study.definition import GridStudy, Study
from workbench.study.power import CONFIDENCE, FOLD_OVERLAP, POWER, detectable_difference
from workbench.study.record import DEFINITION, StudyRecord
from workbench.study.results import TABLE, best_tuned


def earlier_deviation(study: Study, folder: Path) -> tuple[float, str] | None:
    """The standard deviation of a pair's difference in results that are there, and whose it is.

    `folder` holds the studies; the same study comes first, else the one of the same preset and metric with
    most trials. None where there is nothing to go by.
    """
    pairs = compared_regimes([claim for claim in study.claims.values() if claim])
    found = []
    for path in sorted(folder.glob(f"*/{TABLE}")):
        definition = path.with_name(DEFINITION)
        if not definition.exists():
            continue
        record = StudyRecord.read(definition)
        if (record.preset, record.metric) != (study.preset, study.metric) or record.search:
            continue
        try:
            table = pd.read_csv(path, keep_default_na=False, na_values=[""])  # a level may be called null
        except pd.errors.EmptyDataError:  # of a study that no trial of has ended
            continue
        deviation, count = paired_deviation(record, table, pairs)
        if count:
            found.append((record.id == study.id, count, record.id, deviation))
    if not found:
        return None
    _, _, name, deviation = max(found)
    return deviation, name


def compared_regimes(claims: list[Claim]) -> set[frozenset[str]]:
    """The pairs of regimes that claims compare with each other, at one level."""
    pairs = set()
    for part in itertools.chain.from_iterable(claim.parts for claim in claims):
        if isinstance(part, FewerLabels):
            pairs.add(frozenset({"scratch", "pretrained"}))
        elif not isinstance(part, Rising) and len(part.of) == 1:
            pairs.add(frozenset(name.partition("/")[0] for name in (*part.of, *part.than)))
    return {pair for pair in pairs if len(pair) == 2}


def paired_deviation(
    record: StudyRecord, table: pd.DataFrame, regimes: set[frozenset[str]]
) -> tuple[float, int]:
    """Standard deviation of a pair's difference, pooled over pairs of arms; and its degrees of freedom.

    Of the best tuned trials: pairs of these `regimes` at the same level, where the table has any; else
    neighbouring levels of a regime. Seeds of a test fold are averaged.
    """
    metric = f"test/{record.metric}"
    if metric not in table or not (table["state"] == "complete").any():
        return 0.0, 0
    done = best_tuned(record, table[table["state"] == "complete"])
    replicate = ["seed"] if done["fold"].isna().all() else ["fold"]
    scores = done.pivot_table(index=replicate, columns=["regime", *record.axes], values=metric)
    arms = list(scores.columns.to_frame().itertuples(index=False, name=None))
    scores.columns = pd.Index(range(len(arms)))
    every = list(itertools.combinations(range(len(arms)), 2))
    pairs = [
        (i, j) for i, j in every if {arms[i][0], arms[j][0]} in regimes and arms[i][1:] == arms[j][1:]
    ] or [(i, j) for i, j in every if j == i + 1 and (len(arms[i]) == 1 or arms[i][0] == arms[j][0])]
    squares, freedom = 0.0, 0
    for i, j in pairs:
        difference = (scores[i] - scores[j]).dropna()
        if len(difference) > 1:
            squares += float(((difference - difference.mean()) ** 2).sum())
            freedom += len(difference) - 1
    return (float(np.sqrt(squares / freedom)), freedom) if freedom else (0.0, 0)


def print_power(study: Study, folder: Path, write: Callable[[str], None]) -> None:
    """The smallest difference between two arms that the study's seeds can be expected to show.

    Of a search, between its winner and the study's own settings, if it is to be confirmed.
    """
    seeds = study.seeds if isinstance(study, GridStudy) else study.search.confirm_seeds
    if not seeds:
        return
    of_folds = study.folds != (None,)
    pairs = len(study.folds) if of_folds else len(seeds)
    kind = "test folds" if of_folds else "seeds"
    if pairs < 2:
        write(f"{kind}: one alone shows no difference, for nothing tells it from chance; name two or more")
        return
    earlier = earlier_deviation(study, folder)
    deviation, name = earlier or (1.0, "")
    found = detectable_difference(pairs, deviation, overlap=FOLD_OVERLAP if of_folds else 0.0)
    if earlier is None:
        size = f"{found:.1f} standard deviations of a pair's difference"
    else:
        size = f"{found:.3g} {study.metric}, by the noise of {name}"
    write(
        f"{kind}: {pairs} pairs of trials can be expected to show a difference of {size} "
        f"({POWER:.0%} power at {CONFIDENCE:.0%} confidence); what test clips add the report says"
    )
