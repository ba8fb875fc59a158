"""What a study is, as it was last run: `studies/<id>/study.json`, and since when its claims stand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from workbench.code_version import code_commit
from workbench.files import write_json
from workbench.settings import digest, identity, to_dict
from workbench.study.claims import enter
from workbench.study.definition import GridStudy, SearchStudy, Study
from workbench.study.plan import PlannedTrial

DEFINITION = "study.json"
CLAIMS = "claims.json"


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study as it was last run: what its table needs to be read."""

    id: str
    name: str
    preset: str
    question: str
    claims: list[str]
    base: dict[str, Any]  # a whole trial, before regime, level, seed and fold
    axes: list[str]  # dotted paths; the first is the figure's
    regimes: list[str]
    metric: str
    search: bool
    command: str
    folder: Path
    commit: str | None = None  # of the code that ran it last
    tuned: list[str] = field(default_factory=list)  # dotted paths that each arm chooses on validation data
    levels: list[Any] = field(default_factory=list)  # of the first axis, in the order of the file
    entered: dict[str, Any] = field(default_factory=dict)  # each claim as it was last run, and since when
    confirms: str | None = None  # the id of a search, whose winner this study runs again
    confirm_seeds: list[int] = field(default_factory=list)  # of a search: on which its winner is run again
    winner: dict[str, Any] | None = None  # that this study runs again: a `Winner`
    space: dict[str, Any] | None = None  # of a search: a `Search`
    trials: dict[str, Any] = field(default_factory=dict)  # of a grid: where each is in the study, by its key

    @classmethod
    def read(cls, path: Path) -> StudyRecord:
        """From its `study.json`."""
        content = json.loads(path.read_text())
        wanted = {f.name: content[f.name] for f in fields(cls) if f.name in content}
        return cls(folder=path.parent, **wanted)


def levels_of(study: Study) -> list[Any]:
    """Values of the first axis, in the order of the file; empty for a search, and where nothing varies."""
    if isinstance(study, SearchStudy) or not study.axes:
        return []
    return list(dict.fromkeys(trial.level[study.axes[0]] for trial in study.trials()))


def write_definition(study: Study, planned: list[PlannedTrial], command: str, folder: Path) -> Path:
    """Keep what the study is, for the table and the figures: `studies/<id>/study.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / DEFINITION
    search = study.search if isinstance(study, SearchStudy) else None
    confirms = study.confirms if isinstance(study, GridStudy) else None
    content = {
        "id": study.id,
        "name": study.name,
        "preset": study.preset,
        "question": study.question,
        "claims": list(study.claims),
        "entered": enter_claims(study, folder),
        "levels": levels_of(study),
        "axes": list(study.axes),
        "tuned": list(study.tuned) if isinstance(study, GridStudy) else [],
        "regimes": list(study.regimes),
        "metric": study.metric,
        "search": search is not None,
        "confirms": confirms.search if confirms else None,
        "confirm_seeds": list(search.confirm_seeds) if search else [],
        "winner": to_dict(confirms) if confirms else None,
        "command": command,
        "commit": code_commit(),
        "overrides": study.overrides,
        "base": study.base,
        "space": to_dict(search) if search else None,
        "trials": {item.key: item.trial.coordinates for item in planned},
    }
    write_json(path, content)
    return path


def enter_claims(study: Study, folder: Path) -> dict[str, Any]:
    """Keep the study's claims as they stand, and since when: `studies/<id>/claims.json`.

    To be done before anything that the study may rest on is computed, by whatever other study.
    """
    path = folder / CLAIMS
    before = json.loads(path.read_text()) if path.exists() else {}
    claims = {name: claim for name, claim in study.claims.items() if claim}
    entered = enter(claims, [levels_of(study), study.regimes, study.metric], before, _trials_of(study))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, entered)
    return entered


def _trials_of(study: Study) -> list[Any]:
    """All that its results depend on, in no order; of a search, what it draws from."""
    if isinstance(study, SearchStudy):
        return [study.base, study.regimes, to_dict(study.search)]
    return sorted(digest(identity(trial.config)) for trial in study.trials())


def studies(root: Path) -> list[StudyRecord]:
    """Every study that was run below `root`, by id."""
    return [StudyRecord.read(path) for path in sorted((root / "studies").glob(f"*/{DEFINITION}"))]


class UnknownStudy(ValueError):
    """No study of that name was run; the message says which were."""


def select_studies(records: list[StudyRecord], names: Sequence[str], root: Path) -> list[StudyRecord]:
    """Those with one of these names or ids; all if none is given. Raises UnknownStudy."""
    unknown = sorted(set(names) - {name for r in records for name in (r.id, r.name)})
    if unknown:
        known = ", ".join(r.id for r in records) or "none yet"
        raise UnknownStudy(f"no study {', '.join(unknown)} below {root}; there: {known}")
    return [r for r in records if not names or {r.id, r.name} & set(names)]
