"""`python -m workbench.data fetch | prepare | inspect | verify`: what is done to datasets before a study."""

from __future__ import annotations

import argparse
import sys

from workbench.commands import INTERRUPTED
from workbench.data.clips import DataError
from workbench.data.fetch_command import add_fetch
from workbench.data.inspect_command import add_inspect
from workbench.data.prepare_command import add_prepare, add_verify
from workbench.settings import ConfigError


def main(arguments: list[str] | None = None) -> int:
    """0 when it was done, 1 when `verify` found damage, 2 when it could not be done, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ConfigError, DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workbench.data", description="What is done to datasets before a study."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_fetch(commands)
    add_prepare(commands)
    add_inspect(commands)
    add_verify(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
