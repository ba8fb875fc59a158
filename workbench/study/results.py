"""mlruns/ -> one tidy table: a row a trial; and of what each arm tuned, its best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pandas as pd
from mlflow import MlflowClient

from workbench.places import Places
from workbench.study.record import DEFINITION, StudyRecord
from workbench.study.tracking import CHILD, CURVES

UI = "http://127.0.0.1:5000"  # of `make ui`
TABLE = "trials.csv"


def trial_table(record: StudyRecord, root: Path) -> pd.DataFrame:
    """One row a trial of the study as last defined, from MLflow.

    Columns: number, state, key, began (when it was last given to a worker, in ms since 1970), seconds (from
    then on), reason, one for each axis and tuned setting (its dotted path), regime, seed, fold, data and pool
    (fingerprints; without a pool of its own, empty), `parameters`, `labelled_clips`, and every final metric
    (`validation/mAP`, `test/mAP`, ...). A trial whose score is not a number has failed.
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
            if key not in rows or rows[key]["number"] < row["number"]:  # it was run again
                rows[key] = row
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


def fingerprints(done: pd.DataFrame) -> dict[str, str]:
    """Of what these trials heard, twelve digits each: of the `data`, and of the `pool`; none is a dash."""
    return {
        name: ", ".join(sorted({fingerprint[:12] for fingerprint in done[name] if fingerprint})) or "-"
        for name in ("data", "pool")
    }


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
        "pool": tags.get("workbench.pool", ""),
        **metrics,
    }
