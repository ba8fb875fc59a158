"""What commands have in common: how one is written for a reader to type, and how it ends."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from workbench.places import DEFAULT_ROOT

INTERRUPTED = 130  # the exit status that a shell gives Ctrl-C


def python_command() -> str:
    """This interpreter: by its path where it lies below the current folder."""
    here, python = Path.cwd(), Path(sys.executable)
    return str(python.relative_to(here)) if python.is_relative_to(here) else "python"


def study_command(
    studies: list[Path],
    preset: str | None,
    assignments: list[str],
    root: Path,
    address: str | None = None,
    *,
    retry_failed: bool = False,
) -> str:
    """Runs studies, or goes on with them."""
    words = [python_command(), "-m", "workbench.study", *map(str, studies)]
    words += ["--preset", preset] if preset else []
    words += [word for text in assignments for word in ("--set", text)]
    words += ["--root", str(root)] if root != DEFAULT_ROOT else []
    words += ["--address", address] if address else []
    words += ["--retry-failed"] if retry_failed else []
    return shlex.join(words)


def ui_command(root: Path) -> str:
    return "make ui" if root == DEFAULT_ROOT else f"make ui MLRUNS={shlex.quote(str(root))}"


def analysis_command(script: str, study_id: str, root: Path) -> str:
    """Of a script of `analysis/`, on one study."""
    option = "" if root == DEFAULT_ROOT else f" --root {shlex.quote(str(root))}"
    return f"{python_command()} analysis/{script}.py {study_id}{option}"
