"""Studies without runs: records and tables with scores as a test wants them."""

import functools
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.study.claims import enter
from workbench.study.record import StudyRecord, levels_of
from workbench.study.study_file import load_study

FOLDER = Path(__file__).parent.parent / "studies"


class NoPredictions:
    """Of trials whose clips are not looked at."""

    def shared_clips(self, keys):
        return 0

    def computed(self, key):
        return None


def rows_of(found):
    return pd.DataFrame(
        {
            "number": i,
            "state": "complete",
            "level": level,
            "regime": "all",
            "seed": seed,
            "fold": None,
            "key": f"{level}{seed}",
            "run_id": f"run{i}",
            "test/mAP": score,
            "validation/mAP": score,
        }
        for i, (level, seed, score) in enumerate(found)
    )


def a_record(**changes):
    values = {
        "id": "mine-quick",
        "name": "mine",
        "preset": "quick",
        "question": "?",
        "claims": [],
        "axes": ["level"],
        "regimes": ["all"],
        "metric": "mAP",
        "search": False,
        "command": "",
        "folder": Path(),
        "base": {},
    }
    return StudyRecord(**(values | changes))


@functools.cache
def _trials_of(path, preset):
    study = load_study(path, preset=preset)
    return study, study.trials()


def simulated(path, preset, score):
    """A study's record and table with `score(trial)` as its validation and test metric."""
    study, trials = _trials_of(path, preset)
    rows = []
    for number, trial in enumerate(trials):
        value = score(trial)
        rows.append(
            {
                "number": number,
                "state": "complete",
                "key": str(number),
                "run_id": str(number),
                "seconds": 60.0,
            }
            | trial.level
            | {"regime": trial.regime, "seed": trial.seed, "fold": trial.fold}
            | {"labelled_clips": 480.0 * trial.config.data.label_fraction}
            | {f"test/{study.metric}": value, f"validation/{study.metric}": value}
        )
    record = a_record(
        id=study.id,
        name=study.name,
        preset=study.preset,
        axes=list(study.axes),
        tuned=list(study.tuned),
        regimes=list(study.regimes),
        metric=study.metric,
        base=study.base,
        claims=list(study.claims),
        levels=levels_of(study),
        trials={str(number): trial.coordinates for number, trial in enumerate(trials)},
        entered=enter({name: claim for name, claim in study.claims.items() if claim}, [], {}),
    )
    return record, pd.DataFrame(rows)


def score_with(effects, deviation, generator):
    """By what the paper says of `trial`, if `effects`; else the same for all."""

    def score(trial):
        level = next((v for k, v in trial.level.items() if "peak_lr" not in k), None)
        few = "balanced" in trial.regime or trial.config.data.label_fraction < 0.5
        value = 0.5 if few else 0.7
        if effects:
            value += _effect(trial, level, few)
        return value + generator.normal(0, deviation)

    return score


def _effect(trial, level, few):
    scratch = trial.config.pretraining is None
    config = trial.config
    gain = -0.2 * scratch * (2 if few else 1)
    gain += 0.1 * (config.finetuning.schedule.kind == "three_stage") - 0.2 * config.finetuning.freeze_encoder
    gain += 0.1 * (config.finetuning.output_dropout > 0) * few
    gain += 0.02 * np.log2(config.data.pool_clips / 8192) * few
    gain += 0.03 * np.log2(config.finetuning.batch_size / 32) * (-1 if few else 1)
    gain += 0.002 * (config.model.width - 64) * (1.5 if few else 1)
    return gain
