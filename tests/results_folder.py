"""What is in a study's results folder, read without opening it as a study: for a campaign of kills."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import dataclass, field

from mlflow import MlflowClient

from workbench.places import Places
from workbench.study.record import studies
from workbench.study.results import trial_table


@dataclass
class State:
    """What is finished in a results folder."""

    ended: dict = field(default_factory=dict)  # a trial's number -> its key; without the forgotten
    complete: set = field(default_factory=set)  # numbers of those
    running: set = field(default_factory=set)
    stages: dict = field(default_factory=dict)  # key -> (what a second computation would change, parents)
    checksums: dict = field(default_factory=dict)  # key -> weights or scores

    @classmethod
    def read(cls, root):
        state = cls()
        for path in (root / "store").glob("*/*/stage.json"):
            if "." in path.parent.name:
                continue  # an attempt, or set aside
            try:
                facts = json.loads(path.read_text())
                times = {file.name: file.stat().st_mtime_ns for file in path.parent.glob("*.safetensors")}
            except FileNotFoundError:  # renamed meanwhile: if it does not come back, the next look tells
                continue
            key = path.parent.name
            state.stages[key] = ((facts["finished"], times), facts["parents"])
            state.checksums[key] = {n: s for n, s in facts["sha256"].items() if n.endswith(".safetensors")}
        state._read_trials(root / "optuna.db")
        return state

    def _read_trials(self, path):
        """By plain reading: Optuna's own opening would mend a database that a kill left half made."""
        if not path.exists():
            return
        query = (
            "SELECT number, state, (SELECT value_json FROM trial_user_attributes AS a"
            " WHERE a.trial_id = t.trial_id AND a.key = 'key') FROM trials AS t"
        )
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
            try:
                rows = database.execute(query).fetchall()
                marks = database.execute(
                    "SELECT value_json FROM study_user_attributes WHERE key = 'forgotten'"
                ).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                return
        forgotten = {number for (text,) in marks for number in json.loads(text)}
        for number, state, key in rows:
            if state == "RUNNING":
                self.running.add(number)
            elif number not in forgotten:
                self.ended[number] = json.loads(key) if key else ""
                self.complete |= {number} if state == "COMPLETE" else set()

    def repeats(self):
        return len(self.ended) - len(set(self.ended.values()))

    def chain(self, key):
        """Keys of a trial's stages, the last first."""
        keys = [key]
        for each in keys:
            keys += self.stages[each][1] if each in self.stages else []
        return keys

    def changed(self, after):
        """Keys of finished stages that are gone afterwards, or were computed again."""
        return {
            key
            for key, (mark, _) in self.stages.items()
            if key not in after.stages or after.stages[key][0] != mark
        }

    def lost(self, after):
        """Numbers of finished trials that are not finished afterwards, or were run again."""
        changed = self.changed(after)
        return {
            number
            for number in self.complete
            if number not in after.complete or changed & set(self.chain(self.ended[number]))
        }


def figures(root):
    """(level, regime, seed) -> the test metrics in the final table, to the bit."""
    if not studies(root):  # given up before it got so far
        return {}
    record = studies(root)[0]
    table = trial_table(record, root)
    place = [*record.axes, "regime", "seed"]
    metrics = sorted(column for column in table.columns if column.startswith("test/"))
    return {
        tuple(str(row[column]) for column in place): [float(row[metric]).hex() for metric in metrics]
        for _, row in table.iterrows()
        if row["state"] == "complete"
    }


def mlflow_runs(root):
    client = MlflowClient(Places.read(root).mlflow_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, max_results=1000))


def half_written(root):
    """What only an interrupted write leaves, where nothing writes any more; links are not followed."""
    found = [*(root / "store").glob("*/*.work"), *(root / "store").glob("*/*.damaged-*")]
    return found + list(root.rglob("*.tmp"))


def last_written(root):
    """When something was last written that a study writes as it gets on."""
    newest = 0
    for path in [*(root / "store").glob("*/*"), *root.glob("*.db")]:
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime_ns)
    return newest
