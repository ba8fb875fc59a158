"""What difference so many seeds can be expected to show."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize, stats

from workbench.study.definition import Study

CONFIDENCE, POWER = 0.95, 0.8


def detectable_difference(
    pairs: int,
    deviation: float = 1.0,
    *,
    overlap: float = 0.0,
    clip_error: float = 0.0,
    confidence: float = CONFIDENCE,
) -> float:
    """The true mean difference that a two-sided paired t-test finds with probability `POWER`.

    `deviation` is the standard deviation of a pair's difference, and the unit of the result. `overlap` is of
    the pairs' training sets, where they are test folds, and `clip_error` what test clips that all pairs share
    add to the standard error of the mean: no number of pairs takes them away.
    """
    if pairs < 2:
        return float("inf")
    critical = float(stats.t.isf((1 - confidence) / 2, pairs - 1))

    def lacking(noncentrality: float) -> float:  # a finding with the wrong sign is none
        return float(stats.nct.sf(critical, pairs - 1, noncentrality) - POWER)

    by_pairs = float(optimize.brentq(lacking, 0.0, 3 * critical + 3)) / math.sqrt(pairs)
    by_pairs *= deviation * math.sqrt(1 + pairs * overlap)
    return math.hypot(by_pairs, standard_errors_to_find(confidence) * clip_error)


def standard_errors_to_find(confidence: float = CONFIDENCE) -> float:
    """Of a mean whose noise is known, that it must be off to be found with probability `POWER`."""
    return float(stats.norm.isf((1 - confidence) / 2) + stats.norm.ppf(POWER))


def earlier_deviation(study: Study, folder: Path) -> tuple[float, str] | None:
    """The standard deviation of a pair's difference in results that are there, and whose it is.

    `folder` holds the studies; the same study comes first, else the one of the same preset and metric with
    most trials. None where there is nothing to go by.
    """
    found = []
    for path in sorted(folder.glob("*/trials.csv")):
        name, definition = path.parent.name, path.with_name("study.json")
        if not definition.exists() or json.loads(definition.read_text())["preset"] != study.preset:
            continue
        deviation, count = _deviation_in(pd.read_csv(path), f"test/{study.metric}")
        if count:
            found.append((name == study.id, count, name, deviation))
    if not found:
        return None
    _, _, name, deviation = max(found)
    return deviation, name


def _deviation_in(table: pd.DataFrame, metric: str) -> tuple[float, int]:
    """Of a study's table as it is kept, where its axes stand between reason and regime."""
    if metric not in table or "seed" not in table:
        return 0.0, 0
    columns = list(table.columns)
    axes = columns[columns.index("reason") + 1 : columns.index("regime")]
    return paired_deviation(table[table.state == "complete"], metric, ["regime", *axes])


def paired_deviation(done: pd.DataFrame, metric: str, arms: list[str]) -> tuple[float, int]:
    """Standard deviation of a pair's difference, pooled over neighbouring arms; and its degrees of freedom.

    Arms are neighbours where they have the same regime, or where `arms` names nothing else.
    """
    if not len(done):
        return 0.0, 0
    scores = done.assign(fold=done["fold"].fillna(-1)).pivot_table(
        index=["seed", "fold"], columns=arms, values=metric, dropna=False
    )
    squares, freedom = 0.0, 0
    for first, second in itertools.pairwise(scores.columns):
        difference = (scores[first] - scores[second]).dropna()
        if (len(arms) == 1 or first[0] == second[0]) and len(difference) > 1:
            squares += float(((difference - difference.mean()) ** 2).sum())
            freedom += len(difference) - 1
    return (float(np.sqrt(squares / freedom)), freedom) if freedom else (0.0, 0)


def print_power(study: Study, folder: Path, write: Callable[[str], None]) -> None:
    """The smallest difference between two arms that the study's seeds can be expected to show.

    Of a search, between its winner and the study's own settings, if it is to be confirmed.
    """
    seeds = study.seeds if study.search is None else study.search.confirm_seeds
    if not seeds:
        return
    pairs = len(seeds) * len(study.folds)
    if pairs < 2:
        write("seeds: one alone shows no difference, for nothing tells it from chance; name two or more")
        return
    earlier = earlier_deviation(study, folder)
    if earlier is None:
        size = f"{detectable_difference(pairs):.1f} standard deviations of a pair's difference"
    else:
        deviation, name = earlier
        size = f"{detectable_difference(pairs, deviation):.3g} {study.metric}, by the noise of {name}"
    write(
        f"seeds: {pairs} pairs of trials can be expected to show a difference of {size} "
        f"({POWER:.0%} power at {CONFIDENCE:.0%} confidence)"
    )
