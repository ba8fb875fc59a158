"""mlruns/ -> one tidy table: a row a trial; and of what each arm tuned, its best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pandas as pd
from mlflow import MlflowClient

from workbench.code_version import code_commit
from workbench.places import Places
from workbench.settings import digest, identity, to_dict
from workbench.store import write_json
from workbench.study.claims import enter
from workbench.study.definition import Study
from workbench.study.plan import PlannedTrial, place
from workbench.study.tracking import CHILD, CURVES

UI = "http://127.0.0.1:5000"  # of `make ui`
DEFINITION = "study.json"
CLAIMS = "claims.json"
TABLE = "trials.csv"


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
    if study.search is not None or not study.axes:
        return []
    return list(dict.fromkeys(trial.level[study.axes[0]] for trial in study.trials()))


def write_definition(study: Study, planned: list[PlannedTrial], command: str, folder: Path) -> Path:
    """Keep what the study is, for the table and the figures: `studies/<id>/study.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / DEFINITION
    content = {
        "id": study.id,
        "name": study.name,
        "preset": study.preset,
        "question": study.question,
        "claims": list(study.claims),
        "entered": enter_claims(study, folder),
        "levels": levels_of(study),
        "axes": list(study.axes),
        "tuned": list(study.tuned),
        "regimes": list(study.regimes),
        "metric": study.metric,
        "search": study.search is not None,
        "confirms": study.confirms.search if study.confirms else None,
        "confirm_seeds": list(study.search.confirm_seeds) if study.search else [],
        "winner": to_dict(study.confirms) if study.confirms else None,
        "command": command,
        "commit": code_commit(),
        "overrides": study.overrides,
        "base": study.base,
        "space": to_dict(study.search) if study.search else None,
        "trials": {item.key: place(item.trial) for item in planned},
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
    if study.search is not None:
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


def trial_table(record: StudyRecord, root: Path) -> pd.DataFrame:
    """One row a trial of the study as last defined, from MLflow.

    Columns: number, state, key, began (when it was last given to a worker, in ms since 1970), seconds (from
    then on), reason, one for each axis and tuned setting (its dotted path), regime, seed, fold, `parameters`,
    `labelled_clips`, and every final metric (`validation/mAP`, `test/mAP`, ...). A trial whose score is not a
    number has failed.
    """
    client = MlflowClient(Places.read(root).mlflow_uri)
    experiment = client.get_experiment_by_name(record.name)
    if experiment is None:
        return pd.DataFrame()
    trials = json.loads((record.folder / DEFINITION).read_text())["trials"]
    query = f"tags.`workbench.kind` = '{CHILD}' and tags.`workbench.study` = '{record.id}'"
    rows: dict[str, dict[str, Any]] = {}
    token = None
    while True:
        page = client.search_runs([experiment.experiment_id], query, 1, 1000, page_token=token)
        for run in page:
            key = run.data.tags["workbench.key"]
            if not record.search and key not in trials:
                continue  # of an earlier definition of the study
            row = _row(run, record, trials.get(key))
            name = str(row["number"]) if record.search else key
            if name not in rows or rows[name]["number"] < row["number"]:
                rows[name] = row
        token = page.token
        if not token:
            break
    table = pd.DataFrame(list(rows.values()))
    return _without_scores(record, table).sort_values("number", ignore_index=True) if len(table) else table


def _without_scores(record: StudyRecord, table: pd.DataFrame) -> pd.DataFrame:
    """`table` with trials that ended without a score as failed: nothing can be said of them."""
    columns = [f"{part}/{record.metric}" for part in ("validation", "test")]
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *columns])))
    scored = np.isfinite(table[columns].to_numpy(float)).all(axis=1)
    lacking = (table["state"] == "complete") & ~scored
    table.loc[lacking, "state"] = "failed"
    table.loc[lacking, "reason"] = f"its {record.metric} is not defined on so few clips"
    return table


def runs_link(record: StudyRecord, runs: Sequence[str], root: Path) -> str:
    """Where MLflow compares these runs: on its server, or where `make ui` shows a folder's."""
    uri = Places.read(root).mlflow_uri
    experiment = MlflowClient(uri).get_experiment_by_name(record.name)
    address = uri.rstrip("/") if uri.startswith("http") else UI
    identity = experiment.experiment_id if experiment else "0"
    query = urlencode({"runs": json.dumps(list(runs)), "experiments": json.dumps([identity])})
    return f"{address}/#/compare-runs?{query}"


def arms(record: StudyRecord) -> list[str]:
    """The columns whose values make an arm: what the study compares."""
    return ["regime", *record.axes]


def best_tuned(record: StudyRecord, done: pd.DataFrame) -> pd.DataFrame:
    """Of the finished trials those of each arm's best tuned setting, by its mean validation score.

    One setting an arm, the same for all its replicates, among those that most of them have. Where nothing
    is tuned, all trials. Test scores take no part.
    """
    if not record.tuned or not len(done):
        return done
    metric = f"validation/{record.metric}"
    points = done.groupby([*arms(record), *record.tuned], dropna=False, sort=False)[metric]
    found = points.agg(["size", "mean"]).reset_index()
    found = found.sort_values(["size", "mean"], ascending=False, kind="stable")
    best = found.drop_duplicates(arms(record))[[*arms(record), *record.tuned]]
    return done.merge(best, on=[*arms(record), *record.tuned], how="inner")


def settings_tried(record: StudyRecord, done: pd.DataFrame) -> dict[tuple[Any, ...], int]:
    """By arm, how many of the settings that the study tunes have a finished trial."""
    points = done[[*arms(record), *record.tuned]].drop_duplicates()
    return {tuple(arm): len(of_arm) for arm, of_arm in points.groupby(arms(record), dropna=False, sort=False)}


def _row(run: Any, record: StudyRecord, place: dict[str, Any] | None) -> dict[str, Any]:
    """`place` is where the study now has the trial; without one, where it was when it ran."""
    tags = run.data.tags
    place = place or {
        name: json.loads(tags[f"workbench.{name}"]) for name in ("level", "regime", "seed", "fold")
    }
    metrics = {k: v for k, v in run.data.metrics.items() if not k.startswith(CURVES)}
    return {
        "number": int(tags["workbench.number"]),
        "state": tags["workbench.state"],
        "key": tags["workbench.key"],
        "began": run.info.start_time,
        "seconds": ((run.info.end_time or run.info.start_time) - run.info.start_time) / 1000,
        "reason": tags.get("workbench.reason", ""),
        **{axis: place["level"].get(axis) for axis in (*record.axes, *record.tuned)},
        "regime": place["regime"],
        "seed": place["seed"],
        "fold": place["fold"],
        "run_id": run.info.run_id,
        "data": tags["workbench.data"],
        **metrics,
    }
