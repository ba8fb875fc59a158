"""Which commit of this code runs."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from pathlib import Path


@functools.cache
def code_commit() -> str | None:
    """Its hash, with "-dirty" where files were changed since; None where this is no git checkout.

    As it was when the process first asked: what is changed later is not what runs.
    """
    here = ["git", "-C", str(Path(__file__).parent)]
    describe = [*here, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]  # by no tag's name
    with contextlib.suppress(OSError):
        found = subprocess.run(describe, capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
    return None
