"""Finished stages by their keys, as the figures need them: facts, histories, predictions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError

from workbench.stages import HISTORY, PREDICTIONS
from workbench.store import Stage, Store
from workbench.training.checkpoint import load_tensors

FloatArray = NDArray[np.float64]


class DamagedStage(OSError):
    """A finished stage of which a file is gone, or cannot be read; the message says what to do."""


class StoredStages:
    """What a store holds of finished stages. A stage that was deleted since is None, or empty."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _facts(self) -> dict[str, dict[str, Any]]:
        entries = [entry for entry in self._store.entries() if entry.finished and entry.facts]
        return {entry.facts["key"]: entry.facts for entry in entries if entry.facts}

    def facts(self, key: str) -> dict[str, Any] | None:
        """The content of `stage.json`."""
        return self._facts.get(key)

    def lineage(self, key: str) -> list[dict[str, Any]]:
        """Facts of a stage and of what it was computed from, the first stage first."""
        facts = self.facts(key)
        if facts is None:
            return []
        return [item for parent in facts["parents"] for item in self.lineage(parent)] + [facts]

    def commits(self, keys: Iterable[str]) -> list[str]:
        """That computed these stages and those before them, in order of time; "unknown" of older stages."""
        found = {facts["key"]: facts for key in keys for facts in self.lineage(key)}
        in_time = sorted(found.values(), key=lambda facts: str(facts["finished"]))
        return list(dict.fromkeys(facts.get("commit") or "unknown" for facts in in_time))

    def predictions(self, key: str) -> tuple[FloatArray, FloatArray] | None:
        """Test scores and targets (N, C) of an evaluation. Raises DamagedStage."""
        facts = self.facts(key)
        if facts is None:
            return None
        path = self._store.fetch(_stage(facts)) / PREDICTIONS
        try:
            tensors = load_tensors(path)[0]
        except (OSError, SafetensorError) as error:
            what = f"cannot be read ({error})" if path.exists() else "is missing"
            raise DamagedStage(
                f"{path} {what}; delete its folder, and the study's command computes it again"
            ) from error
        return tensors["scores"].double().numpy(), tensors["targets"].double().numpy()

    def history(self, key: str) -> pd.DataFrame:
        """Of a trial, by the key of its evaluation: `stage`, `step` and every metric, a row a log point."""
        rows = []
        for facts in self.lineage(key):
            lines = (self._store.read(_stage(facts), HISTORY) or b"").splitlines()
            rows += [{"stage": facts["kind"], **json.loads(line)} for line in lines]
        return pd.DataFrame(rows)


def _stage(facts: dict[str, Any]) -> Stage:
    return Stage(facts["kind"], facts["version"], facts["settings"], tuple(facts["parents"]))
