"""MLflow: a parent run a study, a child run a trial. The only writer of MLflow.

Children are written whole when their trial has ended, in a few batches, so none is left half-written but by
a kill in between; such a one is removed when the study goes on, and written again.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A tracking server may be started anew meanwhile (half a minute); by default, one that is gone costs minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, RunStatus, ViewType
from mlflow.exceptions import MlflowException

from workbench.places import Places
from workbench.settings import identity
from workbench.stages import TrialResult
from workbench.study.definition import Study
from workbench.study.plan import PlannedTrial
from workbench.study.trial_storage import Ended

logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # what is wrong is raised, and told once
logging.getLogger("alembic").setLevel(logging.CRITICAL)

TRACKING_ERRORS = (MlflowException,)  # a database or server that cannot be read or written
PARAMS_BATCH, METRICS_BATCH = 100, 1000  # a request may hold so many
SQLITE = "sqlite:///"
PARENT, CHILD = "study", "trial"  # values of the tag workbench.kind
CURVES = (
    "training/"  # prefix of what has a value at every log point; listed after test/, where it is in no way
)


class Tracking:
    """The runs of one study."""

    def __init__(self, study: Study, places: Places) -> None:
        _create_database(places.mlflow_uri)
        self._client = MlflowClient(places.mlflow_uri)
        self._study_id, self._places = study.id, places
        self._experiment = self._experiment_id(study.name, places)
        self._parent = self._parent_run(study)
        self._children: dict[int, str] = {}  # trial number -> run
        self._take_stock()

    def has(self, number: int) -> bool:
        """Whether the trial of that number is written whole."""
        return number in self._children

    def record(self, ended: Ended, planned: PlannedTrial, result: TrialResult | None) -> None:
        """Write a trial that has ended, with its result where it has one."""
        began, finished = (int(moment.timestamp() * 1000) for moment in (ended.began, ended.finished))
        trial = planned.trial
        tags = {
            "mlflow.parentRunId": self._parent,
            "workbench.kind": CHILD,
            "workbench.study": self._study_id,
            "workbench.number": str(ended.number),
            "workbench.key": ended.key,
            "workbench.state": ended.state,
            "workbench.reason": ended.reason[:4000],
            "workbench.data": planned.data_fingerprint,
            **({"workbench.pool": planned.pool_fingerprint} if planned.pool_fingerprint else {}),
            **{f"workbench.{name}": json.dumps(value) for name, value in trial.coordinates.items()},
        }
        run = self._client.create_run(self._experiment, began, tags, f"{ended.number:04d} {trial.label}")
        run_id = run.info.run_id
        settings = {"regime": trial.regime, **_flatten(identity(trial.config))}
        params = [Param(name, str(value)[:6000]) for name, value in settings.items()]
        metrics = _metrics(result, finished) if result else []
        for begin in range(0, len(params), PARAMS_BATCH):
            self._client.log_batch(run_id, params=params[begin : begin + PARAMS_BATCH])
        for begin in range(0, len(metrics), METRICS_BATCH):
            self._client.log_batch(run_id, metrics=metrics[begin : begin + METRICS_BATCH])
        status = {"complete": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}[ended.state]
        self._client.set_terminated(run_id, status, finished)
        self._children[ended.number] = run_id

    def attach(self, path: Path) -> None:
        """Keep a file with the study. Raises Elsewhere."""
        _refuse_elsewhere(self._client.get_experiment(self._experiment), self._places)
        self._client.log_artifact(self._parent, str(path))

    def finish(self, status: str) -> None:
        """End the study's run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self._parent, status)

    def _experiment_id(self, name: str, places: Places) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        if not places.mlflow_uri.startswith("sqlite:"):  # a server knows where its artifacts go
            return str(self._client.create_experiment(name))
        return str(self._client.create_experiment(name, artifact_location=_artifacts(name, places)))

    def _parent_run(self, study: Study) -> str:
        """The study's run, opened again if there is one."""
        tags = {
            "workbench.kind": PARENT,
            "workbench.study": study.id,
            "workbench.preset": study.preset,
            "workbench.claims": ", ".join(study.claims),
            "mlflow.note.content": study.question,
        }
        found = self._search(f"tags.`workbench.kind` = '{PARENT}' and tags.`workbench.study` = '{study.id}'")
        if found:
            run_id = str(found[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        run = self._client.create_run(self._experiment, run_name=study.id, tags=tags)
        return str(run.info.run_id)

    def _take_stock(self) -> None:
        for run in self._search(f"tags.`mlflow.parentRunId` = '{self._parent}'"):
            if run.info.status == RunStatus.to_string(RunStatus.RUNNING):
                self._client.delete_run(run.info.run_id)  # cut off while it was written
            else:
                self._children[int(run.data.tags["workbench.number"])] = run.info.run_id

    def _search(self, query: str) -> list[Any]:
        runs, token = [], None
        while True:
            page = self._client.search_runs(
                [self._experiment], query, ViewType.ACTIVE_ONLY, 1000, page_token=token
            )
            runs += list(page)
            token = page.token
            if not token:
                return runs


def _create_database(uri: str) -> None:
    """There whole, or not at all: MLflow cannot go on with a database that a kill left half-made."""
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or path.exists():
        return
    aside = path.with_name(f"{path.name}.tmp")
    aside.unlink(missing_ok=True)
    MlflowClient(f"{SQLITE}{aside}").search_experiments(max_results=1)
    aside.rename(path)


def attach(name: str, study_id: str, places: Places, path: Path) -> None:
    """Keep a file with the run of a study that is not running.

    Raises Elsewhere.
    """
    client = MlflowClient(places.mlflow_uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return
    _refuse_elsewhere(experiment, places)
    query = f"tags.`workbench.kind` = '{PARENT}' and tags.`workbench.study` = '{study_id}'"
    for run in client.search_runs([experiment.experiment_id], query):
        client.log_artifact(run.info.run_id, str(path))


class Elsewhere(OSError):
    """Results were moved or copied since, and MLflow keeps the folder of a study's files whole."""


def _refuse_elsewhere(experiment: Experiment, places: Places) -> None:
    location = experiment.artifact_location
    if places.mlflow_uri.startswith("sqlite:") and location != _artifacts(experiment.name, places):
        raise Elsewhere(
            f"MLflow keeps files of {experiment.name} in {location}, and these results lie elsewhere now"
        )


def _artifacts(name: str, places: Places) -> str:
    """Where MLflow keeps files of a study, if not on a server."""
    return (places.root / "artifacts" / name).resolve().as_uri()


def _metrics(result: TrialResult, moment: int) -> list[Metric]:
    """Final figures at the run's end, and the curves."""
    final = result.metrics | {
        name: float(result.facts[name])
        for name in ("parameters", "labelled_clips", "pool_hours")
        if name in result.facts
    }
    metrics = [Metric(name, value, moment, 0) for name, value in final.items()]
    for row in result.history:
        for name, value in row.items():
            if name in ("stage", "step"):
                continue
            curve = name if "/" in name else f"{row['stage']}/{name}"
            metrics.append(Metric(f"{CURVES}{curve}", value, moment, int(row["step"])))
    return metrics


def _flatten(settings: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {path: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flatten(value, f"{path}.{key}" if path else key)
    return flat
