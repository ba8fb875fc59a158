"""How figures and counts are written, wherever they are printed."""

from __future__ import annotations

import math


def p_words(p: float) -> str:
    """A p value; "-" where there is none."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.2g}"


def counted(count: int, thing: str) -> str:
    """So many things, "1 seed" or "3 seeds"."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"
