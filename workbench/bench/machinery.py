"""What the study's machinery costs a trial: `python -m workbench.bench.machinery`.

Trials that train nothing, at concurrency 2, through everything a study does with one (Tune, the ledger in
Optuna's storage, a run in MLflow with its settings and curves), beside stock Tune with OptunaSearch in
memory and no tracking at all. Both in one Ray, in turn; starting Ray is not counted.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from workbench.config import TrialConfig
from workbench.places import Places
from workbench.settings import from_dict
from workbench.stages import HISTORY, stages_of
from workbench.store import open_store
from workbench.study.books import Books
from workbench.study.device import Device
from workbench.study.interruption import Interruption
from workbench.study.progress import Progress
from workbench.study.ray_session import ray_started
from workbench.study.study_file import load_study
from workbench.study.tune import run_trials

CURVE_POINTS = 100
TRIALS, ROUNDS = 24, 3
DEVICE = Device("cpu", threads=1, concurrency=2, num_gpus=0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Cost of the study's machinery, per trial.")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    show({"trials": options.trials} | measure(options.trials, options.rounds))


def measure(trials: int = TRIALS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds a trial of ours and of stock Tune, a round each, and their ratios."""
    ours, stock = [], []
    with ray_started(DEVICE):
        for number in range(rounds):
            stock.append(_stock(trials, number))
            ours.append(_ours(trials))
    ratios = [one / other for one, other in zip(ours, stock, strict=True)]
    return {"ours": ours, "plain": stock, "ratios": ratios}


def show(figures: dict[str, Any]) -> None:
    """The table of `measure`'s figures, with the number of trials."""
    console = Console(highlight=False)
    rounds = len(figures["ratios"])
    console.print(f"{figures['trials']} trials that train nothing, concurrency 2, {rounds} rounds")
    console.print("seconds a trial                                    median    min    max")
    for name, values in (
        ("workbench: Tune, Optuna storage, MLflow", figures["ours"]),
        ("stock Tune and OptunaSearch, nothing kept", figures["plain"]),
        ("ratio, round by round", figures["ratios"]),
    ):
        console.print(f"{name:48s}  {_row(values)}")


def _row(values: list[float]) -> str:
    return f"{statistics.median(values):7.3f} {min(values):6.3f} {max(values):6.3f}"


def _train_nothing(config: dict[str, Any], settings: dict[str, Any]) -> None:
    """A worker that writes a finished stage with curves, as a trial does, and trains nothing."""
    from ray import tune

    (sent,) = config["trials"]
    trial = from_dict(TrialConfig, json.loads(sent["config"]))
    stage = stages_of(trial, sent["data_fingerprint"], sent["pool_fingerprint"]).evaluate

    def build(folder: Path) -> dict[str, Any]:
        rows = ({"step": step, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0} for step in range(CURVE_POINTS))
        (folder / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in rows))
        metrics = {"validation/mAP": 0.5, "test/mAP": 0.5}
        return {"metrics": metrics, "parameters": 1, "labelled_clips": 1, "pool_hours": 1.0}

    open_store(settings["store"]).obtain(stage, build)
    tune.report({"event": "done", "number": sent["number"], "value": 0.5})


def _ours(num_trials: int) -> float:
    """Seconds a trial."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = root / "nothing.yaml"
        seeds = list(range(num_trials))
        path.write_text(f"question: What does a trial cost?\npreset: smoke\nseeds: {seeds}\n")
        study = load_study(path)
        places = Places.read(root)
        books = Books(study, places, places.store())
        silent = Console(file=io.StringIO())
        interruption = Interruption(str(root / "stop"))
        began = time.perf_counter()
        with (
            Progress(books.ledger, silent, books.begin, books.record, interruption) as progress,
            interruption,
        ):
            run_trials(books.ledger, places, progress, DEVICE, interruption, worker=_train_nothing)
        seconds = time.perf_counter() - began
        assert len(books.ledger.ended()) == num_trials
    return seconds / num_trials


def _stock(num_trials: int, seed: int) -> float:
    """Seconds a trial."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    def train(config: dict[str, Any]) -> None:
        tune.report({"score": config["x"]})

    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(train, {"cpu": 1}),
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=OptunaSearch(seed=seed),
                num_samples=num_trials,
                max_concurrent_trials=2,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        began = time.perf_counter()
        tuner.fit()
        return (time.perf_counter() - began) / num_trials


if __name__ == "__main__":
    main()
