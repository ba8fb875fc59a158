"""`python -m workbench.study studies/heads.yaml`: run a study, or go on with it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from workbench.data.clips import DataError
from workbench.settings import ConfigError
from workbench.study.commands import DEFAULT_ROOT, study_command
from workbench.study.definition import Study, load_study
from workbench.study.plan import Planner, print_plan

INTERRUPTED = 130  # the exit status that a shell gives it


def main(arguments: list[str] | None = None) -> int:
    """0 when every trial has ended well, 1 when some failed, 2 when nothing could be run."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        study = load_study(options.study, preset=options.preset, assignments=tuple(options.assignments))
        console.print(f"{study.id}: {study.question}", markup=False)
        if options.retry_failed and study.search is not None:
            raise ConfigError("--retry-failed", "a search does not retry; raise search.num_trials instead")
        if options.dry_run:
            return _dry_run(study, options.root, console)
        return _run(study, options, console)
    except (ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        command = _command(options)
        print(f"\nInterrupted. What is finished is kept; to go on:\n  {command}", file=sys.stderr)
        return INTERRUPTED


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
        "--retry-failed",
        action="store_true",
        help="try trials again that failed by their own fault",
    )
    parser.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, help="where results are kept (default: mlruns)"
    )
    return parser


def _command(options: argparse.Namespace) -> str:
    return study_command(options.study, options.preset, options.assignments, options.root)


def _dry_run(study: Study, root: Path, console: Console) -> int:
    from workbench.store import Store

    trials = study.trials() if study.search is None else study.corners()[:1]
    if study.search is not None:
        count = study.search.num_trials
        console.print(f"a search of {count} trials by {study.search.sampler}; a corner of its space:")
    planner = Planner()
    planned = [planner.plan(trial) for trial in trials]
    print_plan(planned, Store(root / "store"), lambda line: console.print(line, markup=False))
    return 0


def _run(study: Study, options: argparse.Namespace, console: Console) -> int:
    # Ray and MLflow take seconds to import; a wrong file or a dry run should not wait for them.
    from workbench.study.run import StudyBusy, run_study
    from workbench.study.tune import StudyStopped

    try:
        well = run_study(
            study,
            options.root,
            command=_command(options),
            console=console,
            retry_failed=options.retry_failed,
        )
    except StudyBusy as error:
        print(error, file=sys.stderr)
        return 2
    except StudyStopped as error:
        print(f"{error}. What is finished is kept; to go on:\n  {_command(options)}", file=sys.stderr)
        return 1
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
