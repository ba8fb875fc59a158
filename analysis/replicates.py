"""What counts as a replicate: a seed; or a test fold, its seeds averaged, for folds share training clips."""

from __future__ import annotations

from typing import TypeVar

import pandas as pd

from workbench.study.power import FOLD_OVERLAP

Scores = TypeVar("Scores", pd.Series, pd.DataFrame)


def with_fold_numbers(trials: pd.DataFrame) -> pd.DataFrame:
    """`fold` as whole numbers, -1 where a trial has none."""
    return trials.assign(fold=pd.to_numeric(trials["fold"]).fillna(-1).astype(int))


def by_replicate(scores: Scores) -> tuple[Scores, float]:
    """Of scores by (seed, fold): a row a replicate; and how far these overlap, as the estimators take it."""
    if (scores.index.get_level_values("fold") < 0).all():
        return scores, 0.0
    return scores.groupby(level="fold").mean(), FOLD_OVERLAP


def replicate_names(scores: pd.Series | pd.DataFrame) -> list[str]:
    """Of what `by_replicate` gives, by its index."""
    if scores.index.nlevels == 1:
        return [f"fold {fold}" for fold in scores.index]
    return [f"seed {seed}" for seed, _ in scores.index]
