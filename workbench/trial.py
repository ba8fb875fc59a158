"""One trial of a study without Ray, on one device or, under torchrun, on several.

`python -m workbench.trial studies/heads.yaml 3` runs what `--dry-run` shows under that number, into the same
store: the study then finds its stages. `torchrun --nproc-per-node 2 -m workbench.trial ...` shares every
batch among two processes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from workbench import processes
from workbench.commands import INTERRUPTED
from workbench.data import make_ready
from workbench.data.clips import DataError
from workbench.places import DEFAULT_ROOT, Places
from workbench.settings import ConfigError
from workbench.stages import run_trial
from workbench.study.definition import SearchStudy
from workbench.study.plan import Planner
from workbench.study.study_file import load_study, refuse_unshared
from workbench.training.loop import Diverged
from workbench.training.tracker import SilentTracker

REPORT_SECONDS = 10.0


def main(arguments: list[str] | None = None) -> int:
    """0 when the trial has ended well, 1 when it diverged or lacked GPU memory, 2 when it could not be run,
    130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="python -m workbench.trial", description="Run one trial of a study, without Ray."
    )
    parser.add_argument("study", type=Path, help="a file such as studies/heads.yaml; no search")
    parser.add_argument("number", type=int, help="of the trial, as --dry-run of the study shows it")
    parser.add_argument("--preset", help="sizes: smoke, quick, cf_small, cf_large")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="where results are kept")
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except Diverged as error:
        print(error, file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        remedy = "accumulation, model.recompute=true or more processes need less"
        first_line = str(error).partition("\n")[0]
        print(f"out of GPU memory; {remedy}: {first_line}", file=sys.stderr)
        return 1
    except (ConfigError, DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
        return INTERRUPTED
    finally:
        processes.leave()
    return 0


def _run(options: argparse.Namespace) -> None:
    study = load_study(options.study, preset=options.preset, assignments=tuple(options.assignments))
    device = processes.join(study.resources.device)
    if isinstance(study, SearchStudy):
        raise ConfigError(str(options.study), "is a search, whose trials are proposed one after the other")
    trials = study.trials()
    if not 0 <= options.number < len(trials):
        raise ConfigError("number", f"must be one of 0 to {len(trials) - 1}, is {options.number}")
    trial = trials[options.number]
    refuse_unshared([trial], processes.count())  # torchrun's number of them, not the study's
    places = Places.read(options.root)
    planned = Planner().plan(trial)
    say = print if processes.rank() == 0 else lambda line: None
    say(f"trial {options.number}: {trial.label}, {processes.count()} x {device.type}")
    fingerprints = planned.data_fingerprint, planned.pool_fingerprint
    if processes.rank() == 0:  # data are made or decoded once; the others then open them
        config = trial.config
        if left_out := make_ready(config.data, config.pool, places.data, trial.seed, say, fingerprints):
            say(f"{len(left_out)} files are left out; python -m workbench.data inspect names them")
    processes.agreed(True, device)
    result = run_trial(
        trial.config,
        *fingerprints,
        store=places.store(say),
        data_root=places.data,
        device=device,
        tracker=_Lines() if processes.rank() == 0 else SilentTracker(),
        report=say,
    )
    for name, value in sorted(result.metrics.items()):
        say(f"{name:24s} {value:.4f}")


class _Lines(SilentTracker):
    """A line now and then."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def progress(self, stage: str, step: int, steps: int) -> None:
        if time.monotonic() - self._last >= REPORT_SECONDS or step == steps:
            self._last = time.monotonic()
            print(f"{stage} {step}/{steps}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
