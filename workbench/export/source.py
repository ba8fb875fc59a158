"""A finished stage as an encoder to save: found in the store, checked, and described."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from workbench.config import SAMPLE_RATE, TrialConfig
from workbench.export.saved import (
    FORMAT,
    ClassifierSettings,
    Origin,
    SavedSettings,
    new_classifier,
)
from workbench.model.encoder import Encoder
from workbench.model.heads import Classifier
from workbench.settings import ConfigError, from_dict
from workbench.stages import VERSIONS, WEIGHTS
from workbench.store import Entry, Stage, Store
from workbench.training.checkpoint import load_tensors


@dataclass(frozen=True)
class Source:
    """What is to be saved, in evaluation mode."""

    settings: SavedSettings
    encoder: Encoder
    classifier: Classifier | None  # None: the stage is a pre-training


def read_source(store: Store, beginning: str) -> Source:
    """Of the stage whose id begins so. Raises ConfigError for one that is not there, ambiguous or damaged."""
    entry = store.find(beginning)
    facts = _facts(store, entry)
    trial = _trial(entry, facts)
    encoder = Encoder(trial.front_end, trial.model)
    weights = _weights(store, entry, facts)
    classifier, head = None, None
    if entry.kind == "finetune":
        head = ClassifierSettings(
            pooling=trial.finetuning.pooling,
            single_label=trial.data.single_label,
            num_classes=len(weights["classifier.linear.bias"]),
            classes=tuple(facts["classes"]) if "classes" in facts else None,
        )
        classifier = new_classifier(trial.model, head)
        classifier.load_state_dict(_below("classifier.", weights))
        weights = _below("encoder.", weights)
    encoder.load_state_dict(weights)
    settings = SavedSettings(
        format=FORMAT,
        sample_rate=SAMPLE_RATE,
        front_end=trial.front_end,
        model=trial.model,
        classifier=head,
        origin=_origin(store, entry, facts),
    )
    return Source(settings, encoder.eval(), classifier and classifier.eval())


def _facts(store: Store, entry: Entry) -> dict[str, Any]:
    """Of a stage with weights, whole and of this version. Raises ConfigError."""
    damage = store.damage(entry)
    facts = entry.facts
    if damage is not None or facts is None:
        raise ConfigError(entry.name, f"is damaged: {damage}; run its study again, which builds it again")
    if entry.kind == "evaluate":
        raise ConfigError(
            entry.name, f"is an evaluation and has no weights; it is of the fine-tuning {facts['parents'][0]}"
        )
    stage = _stage(facts)
    if stage.version != VERSIONS[stage.kind]:
        raise ConfigError(
            entry.name,
            f"was computed by version {stage.version} of {stage.kind}, and this workbench has "
            f"{VERSIONS[stage.kind]}: its weights may mean another model; run its study again",
        )
    return facts


def _stage(facts: dict[str, Any]) -> Stage:
    return Stage(facts["kind"], facts["version"], facts["settings"], tuple(facts["parents"]))


def _trial(entry: Entry, facts: dict[str, Any]) -> TrialConfig:
    """As far as the stage knows it: what only later stages hear has its defaults."""
    fingerprints = {"data_fingerprint", "pool_fingerprint"}
    settings = {name: value for name, value in facts["settings"].items() if name not in fingerprints}
    try:
        return from_dict(TrialConfig, settings)
    except ConfigError as error:
        raise error.below(entry.name) from None


def _weights(store: Store, entry: Entry, facts: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_tensors(store.fetch(_stage(facts)) / WEIGHTS)[0]


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _origin(store: Store, entry: Entry, facts: dict[str, Any]) -> Origin:
    entries = [other for other in store.entries() if other.finished and other.facts]
    known = {other.key: other.facts for other in entries if other.facts}
    children = [other for other in known.values() if entry.key in other["parents"]]
    settings, parent = facts["settings"], next(iter(facts["parents"]), None)
    before = settings if entry.kind == "pretrain" else known.get(parent or "", {}).get("settings", {})
    return Origin(
        stage="pretrain" if entry.kind == "pretrain" else "finetune",
        id=entry.key,
        version=facts["version"],
        finished=facts["finished"],
        parent=parent,
        seed=settings["seed"],
        precision=settings["precision"],
        data=settings.get("data"),
        data_fingerprint=settings.get("data_fingerprint"),
        pretraining=before.get("pretraining"),
        # Stages finished before a pre-training kept it are described by a fine-tuning that read them.
        pool_hours=next((f["pool_hours"] for f in (facts, *children) if "pool_hours" in f), None),
        finetuning=settings.get("finetuning"),
        labelled_clips=facts.get("labelled_clips"),
        metrics=_metrics(facts, children),
        pool=settings.get("pool"),
        pool_fingerprint=settings.get("pool_fingerprint"),
    )


def _metrics(facts: dict[str, Any], children: list[dict[str, Any]]) -> dict[str, float]:
    """The stage's own, and those on test clips where an evaluation of it is in the store."""
    found = dict(facts["metrics"])
    for child in children:
        if child["kind"] == "evaluate":
            found |= child["metrics"]
    return {name: float(v) for name, v in found.items() if "/" in name and math.isfinite(v)}
