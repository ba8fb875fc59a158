"""Test scores of finished trials, clip by clip, and metrics of clips redrawn with replacement.

N clips, C classes, R resamples.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from analysis.stored import StoredStages
from workbench.random_streams import numpy_stream
from workbench.training.metrics import summarise

FloatArray = NDArray[np.float64]

RESAMPLES = 300  # enough for a variance


class Predictions:
    """Of evaluations, by their keys; each is read, and resampled, once."""

    def __init__(self, stages: StoredStages, metric: str, *, seed: int = 0) -> None:
        """`metric` as in `summarise`; `seed` is of the draws of clips."""
        self._stages = stages
        self._metric = metric
        self._seed = seed
        self._read: dict[str, tuple[FloatArray, FloatArray] | None] = {}
        self._resampled: dict[str, FloatArray] = {}

    def shared_clips(self, keys: Iterable[str]) -> int | None:
        """How many test clips all of these trials were judged on; 0 where they were not the same.

        None where the predictions of one were deleted.
        """
        found = [self._scores(key) for key in keys]
        if any(one is None for one in found):
            return None
        first, *others = [one[1] for one in found if one is not None]
        return len(first) if all(np.array_equal(first, other) for other in others) else 0

    def computed(self, key: str) -> datetime.datetime | None:
        """When the trial was judged, by whatever study; None where that was deleted."""
        facts = self._stages.facts(key)
        return None if facts is None else datetime.datetime.fromisoformat(facts["finished"])

    def resampled(self, key: str) -> FloatArray:
        """The metric of redrawn clips (R,): row r is of the same clips for every key with as many."""
        if key not in self._resampled:
            found = self._scores(key)
            assert found is not None, "asked for only where shared_clips found it"
            scores, targets = found
            generator = numpy_stream(self._seed, "clips")
            every = range(len(scores))
            drawn = generator.multinomial(len(every), np.full(len(every), 1 / len(every)), size=RESAMPLES)
            self._resampled[key] = resampled_metric(self._metric, scores, targets, drawn)
        return self._resampled[key]

    def _scores(self, key: str) -> tuple[FloatArray, FloatArray] | None:
        if key not in self._read:
            self._read[key] = self._stages.predictions(key)
        return self._read[key]


def resampled_metric(
    metric: str, scores: FloatArray, targets: FloatArray, drawn: NDArray[np.int64]
) -> FloatArray:
    """`metric` of scores and targets (N, C) with clip i taken `drawn[r, i]` times (R, N): (R,)."""
    if metric == "mAP":
        return _resampled_map(scores, targets, drawn)
    every = np.arange(len(scores))
    single = metric == "accuracy"
    return np.array(
        [summarise(scores[rows], targets[rows], single_label=single)[metric] for rows in _rows(every, drawn)]
    )


def _rows(every: NDArray[np.int64], drawn: NDArray[np.int64]) -> Iterable[NDArray[np.int64]]:
    return (np.repeat(every, counts) for counts in drawn)


def _resampled_map(scores: FloatArray, targets: FloatArray, drawn: NDArray[np.int64]) -> FloatArray:
    """All resamples at once, a tenth of the time: a clip taken w times is one threshold with w clips."""
    per_class = np.full((len(drawn), scores.shape[1]), np.nan)
    for c in range(scores.shape[1]):
        order = np.argsort(-scores[:, c], kind="stable")
        ranked = scores[order, c]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of clips with equal scores
        seen = np.cumsum(drawn[:, order], axis=1)[:, ends]
        hits = np.cumsum(drawn[:, order] * targets[order, c], axis=1)[:, ends]
        new_hits = np.diff(hits, axis=1, prepend=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(seen > 0, hits / seen, 0.0)
            per_class[:, c] = (new_hits * precision).sum(axis=1) / hits[:, -1]
    return np.nanmean(per_class, axis=1)  # over the classes with a positive
