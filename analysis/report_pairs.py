"""Of studies with two levels the paired difference: what more updates give, or what a search has found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from analysis.contrasts import Trials, compare, ordered_levels
from analysis.estimators import Comparison, holm
from analysis.findings import Findings
from analysis.plot_ablation import short
from analysis.words import p_words
from workbench.study.results import best_tuned


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One level of a study's only axis less the other, in one regime.

    found: None where it cannot be compared, and `note` says why.
    p_holm: corrected for the study's regimes; NaN without a test.
    """

    regime: str
    setting: str
    of: Any
    than: Any
    found: Comparison | None
    note: str
    p_holm: float = math.nan

    @property
    def difference(self) -> str:
        """With its interval and n, in words."""
        if self.found is None:
            return f"not compared: {self.note}"
        low, high = self.found.low, self.found.high
        interval = "no interval" if math.isnan(low) else f"95 % interval {low:+.3f} to {high:+.3f}"
        if not self.found.has_spread:
            interval = "no interval, for all replicates have the same difference"
        p_value = "" if math.isnan(self.p_holm) else f", p {_equals(p_words(self.p_holm))}"
        note = f"; {self.note}" if self.note else ""
        return f"{self.found.mean:+.3f} ({interval}, n = {self.found.n}{p_value}{note})"

    def __str__(self) -> str:
        return f"{self.regime}, {self.setting} {short(self.of)} less {short(self.than)}: {self.difference}"


def pairs_of(study: Findings) -> list[Pair]:
    """Of a study with two levels, the second less the first in each regime; of any other none."""
    record = study.record
    levels = ordered_levels(record)
    if record.search or len(record.axes) != 1 or len(levels) != 2 or not len(study.done):
        return []
    trials = Trials(record, best_tuned(record, study.done), study.predictions)
    compared = [_compared(trials, regime, levels) for regime in record.regimes]
    tested = [found.p_value for found, _ in compared if found and _is_tested(found)]
    corrected = iter(holm(tested)) if tested else iter(())
    return [
        Pair(
            regime=regime,
            setting=record.axes[0].rsplit(".", 1)[-1],
            of=levels[1],
            than=levels[0],
            found=found,
            note=note,
            p_holm=float(next(corrected)) if found and _is_tested(found) else math.nan,
        )
        for regime, (found, note) in zip(record.regimes, compared, strict=True)
    ]


def _compared(trials: Trials, regime: str, levels: list[Any]) -> tuple[Comparison | None, str]:
    try:
        return compare(trials, [(regime, levels[1])], [(regime, levels[0])])
    except ValueError as error:  # NotTested, or figures that an estimator refuses
        return None, str(error)


def _is_tested(found: Comparison) -> bool:
    return found.has_spread and not math.isnan(found.p_value)


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"
