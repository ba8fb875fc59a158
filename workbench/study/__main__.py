"""`python -m workbench.study studies/heads.yaml`: run a study, or go on with it."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from workbench.commands import INTERRUPTED, study_command
from workbench.data.clips import DataError
from workbench.places import DEFAULT_ROOT, Places
from workbench.settings import ConfigError
from workbench.study import cluster
from workbench.study.claims import is_claims_file
from workbench.study.definition import GridStudy, Resources, SearchStudy, Study
from workbench.study.interruption import StudyBusy, StudyInterrupted, StudyStopped
from workbench.study.plan import PlannedTrial, Planner, print_stages, print_trials
from workbench.study.record import enter_claims
from workbench.study.study_file import load_study

if TYPE_CHECKING:
    from workbench.study.cost import Plan
    from workbench.study.trial_storage import Ended

T = TypeVar("T")


def main(arguments: list[str] | None = None) -> int:
    """0 when every trial has ended well, 1 when some failed or a study was stopped, 2 when one could not run.

    130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    if options.address is not None:
        os.environ[cluster.VARIABLE] = options.address  # before Ray is imported
    try:
        options.studies = _without_claims(options.studies)
        studies = [
            load_study(path, preset=options.preset, assignments=tuple(options.assignments))
            for path in options.studies
        ]
        places = Places.read(options.root)
        if (address := cluster.cluster_address()) is not None:
            cluster.look(address)  # before anything takes time
        if options.dry_run:
            return _dry_run(studies, places, console, retry_failed=options.retry_failed)
        for study in studies:  # before the first of them runs: they share stages
            enter_claims(study, places.study(study.id))
        status = 0
        for study, path in zip(studies, options.studies, strict=True):
            try:
                status = max(status, _run(study, path, places, options, console))
            except StudyInterrupted as end:
                if not end.finished or study is not studies[-1]:
                    return _interrupted(options)
                status = max(status, 0 if end.well else 1)
            except (ConfigError, DataError) as error:  # the others may do without what this one lacks
                print(f"{study.id}: {error}", file=sys.stderr)
                status = 2
        return status
    except (ConfigError, DataError, OSError) as error:  # the last: a folder that cannot be written
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _interrupted(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workbench.study",
        description="Run a study. The same command goes on where it stopped, and repeats nothing.",
    )
    parser.add_argument(
        "studies", type=Path, nargs="+", metavar="STUDY", help="a file such as studies/heads.yaml"
    )
    parser.add_argument("--preset", help="sizes: smoke, quick, cf_small, cf_large")
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="a setting of the trials or the study, such as finetuning.optimiser.peak_lr=1e-3",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print every trial and what it costs; train nothing"
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="try trials again that failed by their own fault (of a search, those that confirm its winner)",
    )
    parser.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, help="where results are kept (default: mlruns)"
    )
    parser.add_argument(
        "--address",
        help="HOST:PORT of a running Ray cluster (default: RAY_ADDRESS, else this machine; docs/cluster.md)",
    )
    return parser


def _without_claims(paths: list[Path]) -> list[Path]:
    """studies/*.yaml names the claims, too."""
    studies = [path for path in paths if not is_claims_file(path)]
    if not studies:
        raise ConfigError(str(paths[0]), "holds claims; give a study that tests them")
    return studies


def _dry_run(studies: list[Study], places: Places, console: Console, *, retry_failed: bool) -> int:
    """Print what would be run, and what it costs; of several studies, what they share too.

    What cannot fit here is said at the end: it may be planned here for another machine. So is whose data are
    not here.
    """
    has = functools.cache(places.store().has)  # a plan is of one moment
    planner = Planner()
    refused: list[str] = []
    together: list[PlannedTrial] = []
    num_planned = 0
    for study in studies:
        _print_question(study, console)
        try:
            every = planner.plan_study(study)
            planned = _left(study, every, planner, places, retry_failed=retry_failed)
        except DataError as error:
            refused.append(f"{study.id}: {error}")
            console.print("cannot be planned: its data are not here", markup=False)
            continue
        except StudyStopped as error:
            refused.append(f"{study.id}: {error}")
            continue
        if isinstance(study, GridStudy):
            print_trials(every, planned, has, lambda line: console.print(line, markup=False))
        else:
            console.print(
                f"a search of {study.search.num_trials} trials by {study.search.sampler}; "
                f"{len(planned)} to run, reckoned at random points"
                + (", every second as given up early:" if study.search.pruner == "median" else ":")
            )
        later = planner.plan_confirmation(study) if planned else []
        plan = _make_plan(study, planned, places, planner, console, resources=study.resources, later=later)
        refused += map(str, _refusal(plan, places))
        together += planned + later
        num_planned += 1
    if num_planned > 1:
        console.print(f"\nall {num_planned} studies together")
        _make_plan(None, together, places, planner, console, resources=studies[0].resources)
    for message in dict.fromkeys(refused):
        print(message, file=sys.stderr)
    return 2 if refused else 0


def _refusal(plan: Plan, places: Places) -> list[ConfigError]:
    from workbench.study.cost import refuse_what_cannot_fit

    try:
        refuse_what_cannot_fit(plan.in_all, plan.model, places)
    except ConfigError as error:
        return [error]
    return []


def _make_plan(
    study: Study | None,
    planned: list[PlannedTrial],
    places: Places,
    planner: Planner,
    console: Console,
    *,
    resources: Resources,
    later: Sequence[PlannedTrial] = (),
) -> Plan:
    """Show stages and cost; `study` is None for several together.

    `later` are stand-ins for the trials that will confirm what a search finds.
    """
    # Measuring needs torch, and takes a while; a wrong file should not wait for it.
    from workbench.study.cost import CostModel, Plan, cost_of, print_cost
    from workbench.study.noise import print_power

    def write(line: str) -> None:
        console.print(line, markup=False)

    has = functools.cache(places.store().has)  # a plan is of one moment
    every = [*planned, *later]
    print_stages(every, has, write)
    if later:
        seeds = ", ".join(str(seed) for seed in dict.fromkeys(item.trial.seed for item in later))
        write(
            f"{len(later)} of them run the winner again beside the study's own settings, on seeds {seeds}; "
            "a random point stands in for it"
        )
    # A search trains its trials one by one: one may be given up before the others.
    pack = 1 if isinstance(study, SearchStudy) else resources.pack
    model = CostModel(places, cluster.device_of(resources), planner, pack=pack)
    if not any(item.stages.missing(has) for item in every):
        nothing = cost_of([], has, model)
        return Plan(planned, model, nothing, nothing)  # nothing to measure for
    model.prepare(every, write)
    cost = cost_of(every, has, model)
    print_cost(cost, model, write)
    if study is not None:
        print_power(study, places.root / "studies", write)
    return Plan(planned, model, cost_of(planned, has, model) if later else cost, cost)


def _run(study: Study, path: Path, places: Places, options: argparse.Namespace, console: Console) -> int:
    # Ray and MLflow take seconds to import; a wrong file or a dry run should not wait for them.
    from workbench.study.cost import refuse_what_cannot_fit
    from workbench.study.run import run_study, stopped_message

    command = study_command([path], options.preset, options.assignments, options.root, options.address)
    to_go_on = _to_go_on(options)
    places.root.mkdir(parents=True, exist_ok=True)
    planner = Planner()

    def run(study: Study) -> bool:
        _print_question(study, console)
        every = planner.plan_study(study)
        left = _left(study, every, planner, places, retry_failed=options.retry_failed)
        later = planner.plan_confirmation(study) if left else []  # else its own plan follows at once
        plan = _make_plan(study, left, places, planner, console, resources=study.resources, later=later)
        refuse_what_cannot_fit(plan.in_all, plan.model, places)
        return run_study(
            study,
            places,
            plan,
            command=command,
            to_go_on=to_go_on,
            console=console,
            retry_failed=options.retry_failed,
        )

    try:
        well = run(study)
        confirmation = _confirmation(study, places, console)
        if confirmation is not None:
            well = run(confirmation) and well
    except StudyBusy as error:
        print(error, file=sys.stderr)
        return 2
    except StudyStopped as error:
        print(stopped_message(str(error), to_go_on), file=sys.stderr)
        return 1
    return 0 if well else 1


def _left(
    study: Study, planned: list[PlannedTrial], planner: Planner, places: Places, *, retry_failed: bool
) -> list[PlannedTrial]:
    """Without the trials that have failed and are not tried again; of a search, as many as are left."""
    ended = _ended(study, places)
    failed = [trial for trial in ended if trial.state == "failed"]
    if isinstance(study, GridStudy):
        left_out = set() if retry_failed else {trial.key for trial in failed}
        return [item for item in planned if item.key not in left_out]
    again = [planner.plan(study.trial_at(trial.point)) for trial in failed if retry_failed and trial.point]
    return again + ([] if _is_exhausted(study, places) else planned[len(ended) :])


def _ended(study: Study, places: Places) -> list[Ended]:
    from workbench.study.trial_storage import ended_trials

    return _read(lambda: ended_trials(study, places.optuna_url))


def _is_exhausted(study: SearchStudy, places: Places) -> bool:
    from workbench.study.trial_storage import is_exhausted

    return _read(lambda: is_exhausted(study, places.optuna_url))


def _read(look: Callable[[], T]) -> T:
    from workbench.study.trial_storage import LEDGER_ERRORS, first_line

    try:
        return look()
    except LEDGER_ERRORS as error:
        raise StudyStopped(f"what is kept of the study could not be read: {first_line(error)}") from error


def _confirmation(study: Study, places: Places, console: Console) -> GridStudy | None:
    """What runs a search's winner again on fresh seeds; None, and why, where there is nothing to confirm."""
    from workbench.study.trial_storage import best_of

    if isinstance(study, GridStudy) or not study.search.confirm_seeds:
        return None
    winner = best_of(_ended(study, places))
    if winner is None or winner.point is None:
        console.print("no trial has ended well: there is nothing to run again", markup=False)
        return None
    if study.is_default(winner.point):
        console.print(
            f"the winner, trial {winner.number}, has the study's own settings: there is nothing to compare",
            markup=False,
        )
        return None
    return study.confirmation(winner.point, winner.number)


def _print_question(study: Study, console: Console) -> None:
    console.print(f"{study.id}: {study.question}", markup=False)


def _interrupted(options: argparse.Namespace) -> int:
    print(f"\nInterrupted. What is finished is kept; to go on:\n  {_to_go_on(options)}", file=sys.stderr)
    return INTERRUPTED


def _to_go_on(options: argparse.Namespace) -> str:
    """The command that was given."""
    return study_command(
        options.studies,
        options.preset,
        options.assignments,
        options.root,
        options.address,
        retry_failed=options.retry_failed,
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, also while it plans
    sys.exit(main())
