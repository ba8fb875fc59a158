"""The paper's claims as statements that a study can test: `claims.yaml`, beside the study files.

A claim holds where all of its parts hold. Arms are named `regime/level`, or `regime` alone where a study
varies nothing else; a level by `first`, `second`, `third`, `fourth` or `last` of the study's own, `base` (the
preset's), `any` (of those that the part does not name otherwise), or its value.

Margins are in the unit of the study's metric, and set before the runs: a study keeps the digest of each of
its claims, of the levels that they are about, and of its trials, with the time when it was first run with
them.
"""

from __future__ import annotations

import datetime
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.settings import ConfigError, digest, from_dict, to_dict
from workbench.strict_yaml import read_yaml

FILE = "claims.yaml"


@dataclass(frozen=True, kw_only=True)
class _TwoSides:
    of: tuple[str, ...]
    than: tuple[str, ...]
    margin: float

    def __post_init__(self) -> None:
        if not self.of or len(self.of) != len(self.than):
            sides = f"{len(self.of)} and {len(self.than)}"
            raise ConfigError("of", f"must name as many arms as than, one or more; got {sides}")


@dataclass(frozen=True, kw_only=True)
class Greater(_TwoSides):
    """The scores of `of`, summed, exceed those of `than` by more than `margin`.

    Two arms a side make a difference of differences. On the logarithmic scale differences are of ratios. A
    negative margin: `of` is not worse by more than so much.
    """

    kind: Literal["greater"] = "greater"
    scale: Literal["score", "log"] = "score"


@dataclass(frozen=True, kw_only=True)
class Equivalent(_TwoSides):
    """The scores of `of` and `than` differ by less than `margin`."""

    kind: Literal["equivalent"] = "equivalent"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin <= 0:
            raise ConfigError("margin", f"must be greater than 0, is {self.margin}")


@dataclass(frozen=True, kw_only=True)
class Rising:
    """The score rises with every level, by more than `margin` each."""

    kind: Literal["rising"] = "rising"
    regime: str
    margin: float

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ConfigError("margin", f"must not be negative, is {self.margin}")


@dataclass(frozen=True, kw_only=True)
class FewerLabels:
    """After pre-training `share` of scratch's score takes fewer labels, by `at_least` of them."""

    kind: Literal["fewer_labels"] = "fewer_labels"
    share: float
    at_least: float

    def __post_init__(self) -> None:
        for name in ("share", "at_least"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(name, f"must lie above 0 and not above 1, is {getattr(self, name)}")


Part = Greater | Equivalent | Rising | FewerLabels


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says, and when data support it."""

    says: str
    where: str  # in the paper
    parts: tuple[Part, ...]
    tested_as: str = ""  # what of it the parts test, where that is less, or more exact

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("parts", "must name at least one")


@dataclass(frozen=True, kw_only=True)
class ClaimsFile:
    """`claims.yaml`."""

    claims: dict[str, Claim]


def read_claims(path: Path) -> dict[str, Claim]:
    """Those of a file, by id. Raises ConfigError."""
    try:
        return from_dict(ClaimsFile, read_yaml(path)).claims
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.path}" if error.path else str(path), error.message) from None


def is_claims_file(path: Path) -> bool:
    return path.name == FILE


def claims_beside(study_file: Path) -> dict[str, Claim] | None:
    """The claims of the folder above the study's and of its own, which go first; None if neither has any."""
    folder = study_file.absolute().parent
    found = [read_claims(path) for path in (folder.parent / FILE, folder / FILE) if path.exists()]
    return dict(itertools.chain.from_iterable(claims.items() for claims in found)) if found else None


def enter(
    claims: dict[str, Claim], design: Any, before: dict[str, Any], trials: Any = None
) -> dict[str, Any]:
    """What a study keeps of its claims: each as it stands, and since when; `before` is what it kept.

    `design` is what the names of arms stand for, and what is compared: levels, regimes and metric, as JSON.
    `trials` is by what it is judged: all their settings, seeds and folds. These are dated by themselves: with
    seeds added after a first look the claim is the same, and its evidence is not what was planned.
    """
    kept = dict(before)  # a claim that is named no longer leaves its trace, should it come back
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for name, claim in claims.items():
        known = before.get(name, {})
        kept[name] = {
            **_dated(digest([to_dict(claim.parts), design]), known, now),
            # Of a study that was run before these were kept, nobody knows since when.
            "trials": _dated(digest(trials), known.get("trials", {}), None if _lacks_trials(known) else now),
            "claim": to_dict(claim),
        }
    return kept


def _lacks_trials(known: dict[str, Any]) -> bool:
    return bool(known) and "trials" not in known


def _dated(current: str, known: dict[str, Any], now: str | None) -> dict[str, Any]:
    """A digest, since when it has been that, and what it was before."""
    earlier = known.get("earlier", [])
    if known.get("digest") == current:
        return {"digest": current, "since": known["since"], "earlier": earlier}
    if known:
        earlier = [*earlier, {"digest": known["digest"], "since": known["since"]}]
    return {"digest": current, "since": now, "earlier": earlier}


def read_entered(name: str, entry: dict[str, Any]) -> Claim:
    """The claim of an entry, as it was when the study was last run. Raises ConfigError."""
    try:
        return from_dict(Claim, entry["claim"])
    except ConfigError as error:
        rule = "is kept as another version of workbench wrote it; run its study again"
        raise ConfigError(f"claim {name}", f"{rule}: {error}") from None
