"""What the commands of the analysis have in common: which studies, from where, to where."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from workbench.places import DEFAULT_ROOT
from workbench.settings import ConfigError
from workbench.study.record import StudyRecord, UnknownStudy, select_studies, studies
from workbench.study.tracking import TRACKING_ERRORS
from workbench.study.trial_storage import LEDGER_ERRORS, first_line


def run(
    work: Callable[[argparse.Namespace, list[StudyRecord]], int],
    arguments: Sequence[str] | None,
    description: str,
) -> int:
    """The exit status of `work` on the options and the studies that they name; 2 for bad input."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("studies", nargs="*", help="names or ids; all that there are if none is given")
    parser.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, help=f"where results are kept (default: {DEFAULT_ROOT})"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("figures"), help="what is written goes there (default: figures)"
    )
    options = parser.parse_args(arguments)
    if options.output.exists() and not options.output.is_dir():
        print(f"--output must be a folder, and {options.output} is a file; name another", file=sys.stderr)
        return 2
    try:
        return work(options, select_studies(studies(options.root), options.studies, options.root))
    except (UnknownStudy, ConfigError) as error:
        print(error, file=sys.stderr)
    except (*TRACKING_ERRORS, *LEDGER_ERRORS) as error:
        print(f"what is kept of the studies could not be read: {first_line(error)}", file=sys.stderr)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}" if error.filename else error, file=sys.stderr)
    return 2
