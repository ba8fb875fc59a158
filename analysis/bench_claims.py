"""How often is a claim supported that is not true? `python -m analysis.bench_claims [STUDY.yaml ...]`.

1,000 simulated studies for every part of every claim of the quick studies: the truth lies just on that part's
margin, so that the claim does not hold, and every other part holds as clearly as it can. Of labels saved also
two arms that are the same, and level off or fall at the end. Trials and rates to choose from are the study's
own; validation and test scores have noise of their own, and all rates are alike.
A claim may be supported in at most 5 % of them; a row fails above what a true 5 % exceeds once in a hundred
runs (6.6 % of 1,000). About a minute for each of the 58 rows.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from analysis.bench_coverage import most_wrong
from analysis.contrasts import Trials, contrasts
from analysis.label_curves import AXIS, PRETRAINED, SCRATCH
from analysis.predictions import Predictions
from analysis.rulings import Ruling
from analysis.verdicts import study_verdicts
from workbench.study.claims import Claim, Equivalent, FewerLabels, Greater, Part, Rising, enter
from workbench.study.definition import GridStudy, SearchStudy, Trial
from workbench.study.record import StudyRecord, levels_of
from workbench.study.study_file import load_study

STUDIES = Path(__file__).parent.parent / "studies"
SEED_NOISE = TRIAL_NOISE = 0.01  # what a seed does to all trials alike; and each trial's own, of either score
FOR_LABELS = 0.2  # of that noise in studies of label counts, where 3 % of a score must be seen
CLEARLY = 0.06  # beyond a margin

Arm = tuple[str, Any]  # regime, level
Means = dict[Arm, float]


class NoClips(Predictions):
    """Of simulated trials."""

    def __init__(self) -> None:
        pass

    def shared_clips(self, keys: Iterable[str]) -> int:
        return 0

    def computed(self, key: str) -> datetime.datetime | None:
        return None


@dataclass(frozen=True)
class Simulation:
    """A study whose trials score as a test wants them."""

    record: StudyRecord
    places: pd.DataFrame  # a row a trial, without scores
    arms: list[Arm]  # of each trial

    @classmethod
    def of(cls, study: GridStudy) -> Simulation:
        claims = {name: claim for name, claim in study.claims.items() if claim}
        trials = study.trials()
        record = StudyRecord(
            id=study.id,
            name=study.name,
            preset=study.preset,
            question=study.question,
            claims=list(claims),
            base=study.base,
            axes=list(study.axes),
            regimes=list(study.regimes),
            metric=study.metric,
            search=False,
            command="",
            folder=Path(),
            tuned=list(study.tuned),
            levels=levels_of(study),
            entered=enter(claims, [], {}),
            trials={str(number): trial.coordinates for number, trial in enumerate(trials)},
        )
        places = pd.DataFrame([_place(number, trial) for number, trial in enumerate(trials)])
        axis = study.axes[0] if study.axes else None
        arms = [(trial.regime, trial.level[axis] if axis else None) for trial in trials]
        return cls(record, places, arms)

    def draw(self, means: Means, generator: np.random.Generator) -> pd.DataFrame:
        """The study's table, with noise about each arm's true mean."""
        much = FOR_LABELS if AXIS in self.record.axes else 1.0
        seeds = self.places["seed"].to_numpy()
        shared = dict(zip(np.unique(seeds), generator.normal(0, much * SEED_NOISE, len(seeds)), strict=False))
        true = np.array([means[arm] for arm in self.arms]) + np.array([shared[seed] for seed in seeds])
        scores = true + generator.normal(0, much * TRIAL_NOISE, (2, len(true)))
        metric = self.record.metric
        return self.places.assign(**{f"validation/{metric}": scores[0], f"test/{metric}": scores[1]})

    def supported(self, means: Means, studies: int, generator: np.random.Generator) -> Counter[str]:
        """Of so many simulated studies, in how many each claim is supported."""
        found: Counter[str] = Counter()
        for _ in range(studies):
            verdicts = study_verdicts(self.record, self.draw(means, generator), NoClips())
            found.update(one.claim_id for one in verdicts if one.ruling is Ruling.SUPPORTED)
        return found


def _place(number: int, trial: Trial) -> dict[str, Any]:
    row = {"number": number, "state": "complete", "key": str(number), "run_id": str(number), **trial.level}
    row |= {"regime": trial.regime, "seed": trial.seed, "fold": trial.fold}
    return row | {"labelled_clips": 480.0 * trial.config.data.label_fraction}


def edges(simulation: Simulation, claim: Claim) -> Iterator[tuple[str, Means]]:
    """True means with which the claim just fails to hold, by one of its parts; and which."""
    trials = Trials(simulation.record, simulation.places, NoClips())
    for number, part in enumerate(claim.parts, 1):
        if isinstance(part, FewerLabels):
            yield f"part {number}", _label_curves(simulation, part)
        elif isinstance(part, Greater) and part.scale == "log":
            yield f"part {number}", _equal_ratios(part)
        else:
            steps = len(contrasts(trials, part)) if isinstance(part, Rising) else 1
            for step in range(steps):
                name = f"part {number}" + (f", step {step + 1}" if steps > 1 else "")
                yield name, _means_at(simulation, trials, claim.parts, number - 1, step)


def _means_at(simulation: Simulation, trials: Trials, parts: tuple[Part, ...], edge: int, step: int) -> Means:
    """Part `edge` on its margin (of `rising` in one step), the others beyond theirs by as much as can be.

    A linear programme in the means, and in how clearly differences and equalities hold.
    """
    every = sorted(set(simulation.arms), key=repr)
    clear_gap, clear_equality = len(every), len(every) + 1
    equal, at_most = [], []  # rows and their right sides

    def row(of: list[Arm], than: list[Arm]) -> np.ndarray:
        values = np.zeros(len(every) + 2)
        for sign, arm in [*((1.0, arm) for arm in of), *((-1.0, arm) for arm in than)]:
            values[every.index(arm)] += sign
        return values

    for i, part in enumerate(parts):
        if isinstance(part, FewerLabels) or (isinstance(part, Greater) and part.scale == "log"):
            continue  # not linear
        for j, (of, than) in enumerate(contrasts(trials, part)):
            values = row(of, than)
            if i == edge and (j == step or not isinstance(part, Rising)):
                equal.append((values, part.margin))
            elif isinstance(part, Equivalent):
                for way in (values, -values):
                    way = way.copy()
                    way[clear_equality] = 1.0
                    at_most.append((way, part.margin))
            else:
                values = -values
                values[clear_gap] = 1.0
                at_most.append((values, -part.margin))
    wanted = np.zeros(len(every) + 2)
    wanted[[clear_gap, clear_equality]] = -1.0
    found = optimize.linprog(
        wanted,
        A_ub=np.array([values for values, _ in at_most]) if at_most else None,
        b_ub=[right for _, right in at_most] or None,
        A_eq=np.array([values for values, _ in equal]),
        b_eq=[right for _, right in equal],
        bounds=[(0.3, 0.9)] * len(every) + [(0.0, CLEARLY)] * 2,
    )
    assert found.x is not None, found.message
    return dict(zip(every, found.x.tolist(), strict=False))


def _equal_ratios(part: Greater) -> Means:
    """Every arm of `of` half as good again as the one of `than` that it is compared with by regime."""
    (better, worse), (other_worse, other_better) = part.of, part.than
    return {(better, None): 0.45, (other_worse, None): 0.3, (worse, None): 0.5, (other_better, None): 0.75}


def _label_curves(simulation: Simulation, part: FewerLabels) -> Means:
    """Straight lines over log labels, apart by just the labels that are to be saved.

    The pre-trained one hardly rises where the whole score is asked for, so that far more is saved at a share
    of it; else it rises fast, and saves nearly as much at the whole score. Straight, for every curve through
    their points is then the same, and the interval no wider than its noise.
    """
    top, rate = 0.7, 0.15  # scratch's last score, and what it gains from twice the labels
    slope = 0.02 if part.share == 1 else 0.2
    asked = np.log2(1 - part.at_least)
    lines = {SCRATCH: (top, rate, 0.0), PRETRAINED: (part.share * top, slope, asked)}

    def score(regime: str, level: float) -> float:
        at, gain, octave = lines[regime]
        return float(at + gain * (np.log2(level) - octave))

    return {(regime, level): score(regime, level) for regime, level in set(simulation.arms)}


# True scores of both arms, from the fewest labels to the most.
LEVELLING = {
    "flat end": (0.40, 0.69, 0.70, 0.70, 0.70),
    "end that falls a little": (0.40, 0.69, 0.70, 0.70, 0.69),
    "falling end": (0.40, 0.66, 0.70, 0.69, 0.67),
}


def same_arms(simulation: Simulation, claim: Claim) -> Iterator[tuple[str, Means]]:
    """True means of two arms that are the same, and no longer rise, of a claim on labels saved."""
    if not any(isinstance(part, FewerLabels) for part in claim.parts):
        return
    levels = sorted({level for _, level in simulation.arms})
    for name, scores in LEVELLING.items():
        at = dict(zip(levels, scores[-len(levels) :], strict=True))
        yield f"same arms, {name}", {(regime, level): at[level] for regime, level in simulation.arms}


def main(arguments: list[str] | None = None) -> int:
    """0 when no claim is supported too often."""
    parser = argparse.ArgumentParser(description="Simulate how often claims that are not true are supported.")
    parser.add_argument("files", nargs="*", type=Path, help="studies; default: all of studies/ with a claim")
    parser.add_argument("--studies", type=int, default=1000, help="for each row; default: 1000")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    generator = np.random.default_rng(options.seed)
    bound, outside = most_wrong(options.studies), 0
    print(f"{options.studies} simulated studies a row; at most {bound:.1%} may support the claim")
    for path in options.files or sorted(set(STUDIES.glob("*.yaml")) - {STUDIES / "claims.yaml"}):
        study = load_study(path, preset="quick")
        if isinstance(study, SearchStudy):
            continue
        simulation = Simulation.of(study)
        for name, claim in ((name, claim) for name, claim in study.claims.items() if claim):
            for edge, means in (*edges(simulation, claim), *same_arms(simulation, claim)):
                share = simulation.supported(means, options.studies, generator)[name] / options.studies
                outside += share > bound
                row = f"{study.name}, {name}, {edge}"
                print(f"{row:<60} {share:7.1%}  {'OUTSIDE' if share > bound else ''}", flush=True)
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
