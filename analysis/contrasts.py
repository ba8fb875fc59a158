"""The arms that a part of a claim names, their scores in finished trials, and the difference of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimators import Comparison, crossed_comparison, paired_comparison
from analysis.label_curves import PRETRAINED, SCRATCH
from analysis.plot_ablation import is_number
from analysis.predictions import Predictions
from analysis.replicates import by_replicate, with_fold_numbers
from analysis.words import counted
from workbench.study.claims import Equivalent, FewerLabels, Greater, Part, Rising
from workbench.study.definition import shown
from workbench.study.record import StudyRecord

OF_FOLDS = "test folds, whose training sets overlap, are the replicates"
Contrast = tuple[list[tuple[str, Any]], list[tuple[str, Any]]]  # (regime, level) of either side
ORDINALS = ("first", "second", "third", "fourth")


class NotTested(ValueError):
    """A part that the study's trials cannot decide; the message says why."""


@dataclass
class Trials:
    """The finished trials of a study, each arm at its best tuned setting."""

    record: StudyRecord
    done: pd.DataFrame
    predictions: Predictions
    used: set[str] = field(default_factory=set)  # runs behind what was asked for

    def __post_init__(self) -> None:
        self.done = with_fold_numbers(self.done)

    def levels(self, regime: str) -> list[Any]:
        """That the study has, finished or not; numbers rising, others in the order of the file."""
        if regime not in self.record.regimes:
            raise NotTested(f"the study has no regime {regime!r}; it has {', '.join(self.record.regimes)}")
        if self.record.axes and not self.record.levels:
            raise NotTested("the study's levels were not kept; its command keeps them")
        if len(self.record.axes) > 1:
            raise NotTested(f"the study varies more than one setting: {', '.join(self.record.axes)}")
        return ordered_levels(self.record)

    def scores(self, arms_of_part: Sequence[tuple[str, Any]]) -> tuple[pd.DataFrame, list[list[str]], int]:
        """Test scores of the replicates that have all arms, a column an arm; keys; how many lack one."""
        metric = f"test/{self.record.metric}"
        columns = []
        for regime, level in arms_of_part:
            rows = self.done[(self.done["regime"] == regime) & self.done[metric].notna()]
            if self.record.axes:
                rows = rows[rows[self.record.axes[0]] == level]
            if not len(rows):
                raise NotTested(f"no trial of {regime}{'' if level is None else f'/{level}'} has finished")
            columns.append(rows.set_index(["seed", "fold"]))
        complete = every = columns[0].index
        for rows in columns[1:]:
            complete, every = complete.intersection(rows.index), every.union(rows.index)
        if not len(complete):
            raise NotTested("no replicate has finished in all of its arms")
        common = [rows.loc[complete] for rows in columns]
        self.used |= {run for rows in common for run in rows["run_id"]}
        values = pd.DataFrame({i: rows[metric] for i, rows in enumerate(common)}, index=complete)
        return values, [list(rows["key"]) for rows in common], len(every) - len(complete)

    def resolve(self, names: Sequence[str]) -> list[list[tuple[str, Any]]]:
        """(regime, level) of each `regime/level`, in every way that `any` may be read. Raises NotTested."""
        split = [name.partition("/")[::2] for name in names]
        found = [None if word == "any" else self._level(regime, word) for regime, word in split]
        open_regimes = {regime for regime, word in split if word == "any"}
        if not open_regimes:
            return [[(regime, level) for (regime, _), level in zip(split, found, strict=True)]]
        named = [level for (_, word), level in zip(split, found, strict=True) if word != "any"]
        free = [level for level in self.levels(min(open_regimes)) if level not in named]
        if not free:
            raise NotTested("there is no further level")
        return [
            [
                (regime, level if word == "any" else own)
                for (regime, word), own in zip(split, found, strict=True)
            ]
            for level in free
        ]

    def _level(self, regime: str, word: str) -> Any:
        levels = self.levels(regime)
        if not word:
            if levels != [None]:
                raise NotTested(f"{regime} has several levels")
            return None
        if word == "last":
            return levels[-1]
        if word in ORDINALS:
            place = ORDINALS.index(word)
            if place >= len(levels):
                raise NotTested(f"{regime} has {len(levels)} levels and no {word}")
            return levels[place]
        if word == "base":
            if not self.record.axes:
                raise NotTested("the study varies no setting")
            value = shown(setting_at(self.record.base, self.record.axes[0]))
            if value not in levels:
                raise NotTested(f"the preset's own {self.record.axes[0]}, {value}, is not among the levels")
            return value
        by_text = {str(level).lower(): level for level in levels}
        if word.lower() not in by_text:
            raise NotTested(f"{regime} has no level {word!r}; it has {', '.join(map(str, levels))}")
        return by_text[word.lower()]


def ordered_levels(record: StudyRecord) -> list[Any]:
    """In the order that `first` and `last` go by."""
    if not record.axes:
        return [None]
    return sorted(record.levels) if all(map(is_number, record.levels)) else record.levels


def level_words(record: StudyRecord) -> str:
    """What a claim's words for levels stand for in a study, such as "2 (first), 3 (second, base)"."""
    if len(record.axes) != 1 or not record.levels:
        return ""
    levels = ordered_levels(record)
    words = dict(zip(map(repr, levels), ([word] for word in ORDINALS), strict=False))
    words.setdefault(repr(levels[-1]), []).append("last")
    with contextlib.suppress(NotTested):
        words.setdefault(repr(shown(setting_at(record.base, record.axes[0]))), []).append("base")
    return ", ".join(f"{level} ({', '.join(words.get(repr(level), ['-']))})" for level in levels)


def setting_at(base: dict[str, Any], path: str) -> Any:
    value: Any = base
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise NotTested(f"the preset sets no {path}")
        value = value[name]
    return value


def compare(
    trials: Trials,
    of: Sequence[tuple[str, Any]],
    than: Sequence[tuple[str, Any]],
    scale: str = "score",
) -> tuple[Comparison, str]:
    """The scores of `of`, summed, less those of `than`; and what the reader should know.

    Over replicates, and over test clips where all were judged on the same. Test folds are replicates of each
    other, with their seeds averaged. Raises NotTested.
    """
    if sorted(map(repr, of)) == sorted(map(repr, than)):
        raise NotTested("both sides are the same arm")
    values, keys, lacking = trials.scores([*of, *than])
    if scale == "log" and (values <= 0).to_numpy().any():
        raise NotTested("a score of 0 has no logarithm")
    signs = np.array([1.0] * len(of) + [-1.0] * len(than))
    scaled: Callable[[Any], Any] = np.log if scale == "log" else np.asarray
    notes = [lacking_words(lacking)] if lacking else []
    differences = pd.Series(scaled(values.to_numpy()) @ signs, index=values.index)
    clips = trials.predictions.shared_clips(key for arm in keys for key in arm)
    if clips is None:
        raise NotTested("predictions that it needs were deleted; the study's command makes them again")
    if len(differences) == 1:
        return paired_comparison([0.0], differences), "; ".join(notes)
    differences, overlap = by_replicate(differences)
    if overlap:
        notes.append(OF_FOLDS)
        found = paired_comparison(np.zeros(len(differences)), differences, overlap=overlap)
        return found, "; ".join(notes)
    if not clips:
        notes.append("over replicates alone: each has its own test clips")
        return paired_comparison(np.zeros(len(differences)), differences), "; ".join(notes)
    redrawn = np.stack(
        [
            sum(
                sign * scaled(trials.predictions.resampled(arm[r]))
                for sign, arm in zip(signs, keys, strict=True)
            )
            for r in range(len(differences))
        ],
        axis=1,
    )
    return crossed_comparison(differences, redrawn, clips), "; ".join(notes)


def lacking_words(count: int) -> str:
    return f"{counted(count, 'replicate')} {'lacks' if count == 1 else 'lack'} a trial"


def contrasts(trials: Trials, part: Part) -> list[Contrast]:
    """The arms of each difference that a part is about. Raises NotTested."""
    match part:
        case Greater() | Equivalent():
            return [sides(part, way) for way in trials.resolve([*part.of, *part.than])]
        case Rising():
            steps = itertools.pairwise(trials.levels(part.regime))
            return [([(part.regime, after)], [(part.regime, before)]) for before, after in steps]
        case FewerLabels():
            levels = trials.levels(PRETRAINED)
            return [([(PRETRAINED, level)], [(SCRATCH, level)]) for level in levels]


def sides(part: Greater | Equivalent, way: Sequence[tuple[str, Any]]) -> Contrast:
    """Of one of the ways in which `Trials.resolve` reads the arms of a part, in its order."""
    return list(way[: len(part.of)]), list(way[len(part.of) :])
