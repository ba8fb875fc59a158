"""`python -m workbench.study studies/heads.yaml`: run a study, or go on with it."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from workbench.config import ConfigError
from workbench.data.clips import DataError
from workbench.study.definition import Study, load_study
from workbench.study.plan import PlannedTrial, Planner, print_plan
from workbench.study.tune import Places

INTERRUPTED = 130  # as a shell has it


def main(arguments: list[str] | None = None) -> int:
    """0 when every trial has ended well, 1 when some failed, 2 when nothing could be run."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        study = load_study(
            options.study, preset=options.preset, assignments=tuple(options.assignments)
        )
        return _dry_run(study, options, console) if options.dry_run else _run(study, options, console)
    except (ConfigError, DataError, StudyBusy) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. What is finished is kept; to go on:\n  {_command(options)}", file=sys.stderr)
        return INTERRUPTED


class StudyBusy(RuntimeError):
    """Another process runs this study."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workbench.study",
        description="Run a study. The same command goes on where it stopped, and repeats nothing.",
    )
    parser.add_argument("study", type=Path, help="a file such as studies/heads.yaml")
    parser.add_argument("--preset", help="sizes: smoke, quick, cf_small, cf_large")
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="a setting of the trials or the study, such as finetuning.optimiser.peak_lr=1e-3",
    )
    parser.add_argument("--dry-run", action="store_true", help="print every trial, train nothing")
    parser.add_argument(
        "--retry-failed", action="store_true", help="try trials again that failed by their own fault"
    )
    parser.add_argument(
        "--root", type=Path, default=Path("mlruns"), help="where results are kept (default: mlruns)"
    )
    return parser


def _command(options: argparse.Namespace) -> str:
    words = ["python", "-m", "workbench.study", str(options.study)]
    words += ["--preset", options.preset] if options.preset else []
    words += [word for text in options.assignments for word in ("--set", text)]
    words += ["--root", str(options.root)] if options.root != Path("mlruns") else []
    return shlex.join(words)


def _dry_run(study: Study, options: argparse.Namespace, console: Console) -> int:
    store = Places(options.root).store
    _print_head(study, console)
    if study.search is not None:
        console.print(f"a search of {study.search.num_trials} trials by {study.search.sampler}; its first point:")
        trials = [_first_point(study)]
    else:
        trials = study.trials()
    planner = Planner()
    print_plan(
        [planner.plan(trial) for trial in trials], store, lambda line: console.print(line, markup=False)
    )
    return 0


def _first_point(study: Study):  # type: ignore[no-untyped-def]
    from workbench.study.definition import _corners

    assert study.search is not None
    regime = next(iter(study.regimes))
    return study.trial(regime, _corners(study.search)[0], study.seeds[0], study.folds[0])


def _print_head(study: Study, console: Console) -> None:
    console.print(f"{study.id}: {study.question}", markup=False)


def _run(study: Study, options: argparse.Namespace, console: Console) -> int:
    # Imported here: --dry-run and a wrong file should not wait for them.
    from workbench import data
    from workbench.stages import read_result
    from workbench.study import results, summary
    from workbench.study.ledger import Ended, Ledger, storage_url
    from workbench.study.progress import Progress
    from workbench.study.tracking import Tracking
    from workbench.study.tune import run_trials

    root: Path = options.root
    places = Places(root)
    store = places.store
    planner = Planner()
    _print_head(study, console)
    with _only_driver(places.study(study.id)):
        with _locked(root / "databases.lock"):  # two that create a database together fail
            ledger = Ledger(study, planner, storage_url(root), retry_failed=options.retry_failed)
            tracking = Tracking(study, root)
        planned = ledger.planned
        by_key = {p.stages.pretrain.key: p.stages.pretrain for p in planned if p.stages.pretrain}
        ledger.is_trained = lambda key: key in by_key and store.has(by_key[key])
        definition = results.write_definition(
            study, [p.key for p in planned], _command(options), places.study(study.id)
        )

        def record(ended: Ended, item: PlannedTrial | None) -> None:
            if item is not None:
                done = ended.state == "complete"
                tracking.record(ended, item, read_result(item.stages, store) if done else None)

        for ended in ledger.ended():  # those that a kill kept from MLflow
            record(ended, ledger.planned_of(ended))

        def record_number(number: int) -> Ended | None:
            ended = next((e for e in ledger.ended() if e.number == number), None)
            if ended is not None:
                record(ended, ledger.planned_of(ended))
            return ended

        if not ledger.exhausted:
            _prepare_data(study, ledger.planned, data.load_splits, places, console)
            console.print(f"{ledger.num_left} of {ledger.num_trials} trials to run", markup=False)
            with Progress(ledger, console, record_number) as progress:
                run_trials(ledger, places, progress, study.resources)
        tracking.attach(definition)
        ended_trials = ledger.ended()
        failed = [e for e in ended_trials if e.state == "failed"]
        record_of_study = next(r for r in results.studies(root) if r.id == study.id)
        table = results.trial_table(record_of_study, root)
        path = places.study(study.id) / "trials.csv"
        table.to_csv(path, index=False)
        tracking.attach(path)
        tracking.finish(failed=bool(failed))
    summary.print_summary(record_of_study, table, root, console)
    return 1 if failed else 0


def _prepare_data(study, planned, load_splits, places, console) -> None:  # type: ignore[no-untyped-def]
    """Make or decode the data once, in the driver: workers then only open them."""
    from workbench.config import digest, identity

    trials = [p.trial for p in planned] or [_first_point(study)]
    seen = set()
    for trial in trials:
        key = digest(identity(trial.config.data))
        if key not in seen:
            seen.add(key)
            splits = load_splits(
                trial.config.data, places.data, trial.seed, lambda line: console.print(line, markup=False)
            )
            if splits.left_out and len(seen) == 1:
                console.print(
                    f"{len(splits.left_out)} unreadable files left out: {', '.join(splits.left_out)}",
                    markup=False,
                )


@contextlib.contextmanager
def _only_driver(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "driver.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyBusy(
                f"{folder.name} is being run by another process; wait for it, or end it"
            ) from None
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
