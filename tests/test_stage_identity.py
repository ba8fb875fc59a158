"""Stages by content: what changes an identity, and what does not."""

import dataclasses

import pytest

from workbench.config import Cosine, PretrainingConfig, TrialConfig
from workbench.data_config import CorpusData, Esc50Data, FolderData
from workbench.stages import stages_of

from .stores import STAGE

# What another value may be, where one cannot be told from the field's type.
OTHERS = {
    "pool": None,  # the tests of pools have theirs
    "kind": None,
    "precision": "bf16",
    "pooling": "linear_softmax",
    "subset": "esc10",
    "num_heads": 4,
    "width": 512,
    "kernel": 17,
    "first_kernel": 33,
    "test_fold": 2,
    "window_ms": 80.0,
    "hop_ms": 10.0,
    "betas": (0.8, 0.98),
    "num_distractors": 7,
    "mixup": None,
    "max_grad_norm": None,
    "schedule": Cosine(),
    "root": "/elsewhere",
    "batch_size": 128,
    "accumulation": 2,
}


def _variants(settings, path=""):
    """Every setting below `settings` with one other value: (path, changed settings)."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        here = f"{path}.{field.name}" if path else field.name
        if dataclasses.is_dataclass(value):
            for inner, changed in _variants(value, here):
                yield inner, dataclasses.replace(settings, **{field.name: changed})
            if field.name not in OTHERS:
                continue
        other = _other(field.name, value)
        if other is not None or field.name in {"mixup", "max_grad_norm"}:
            yield here, dataclasses.replace(settings, **{field.name: other})


def _other(name, value):
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    raise AssertionError(f"the test has no other value for {name} = {value!r}")


@pytest.mark.parametrize("data", [CorpusData(label_fraction=0.5), Esc50Data(corpus_clips=8), FolderData()])
def test_every_setting_takes_part_in_the_trials_identity(data):
    trial = TrialConfig(data=data)
    keys = {stages_of(trial, "data").key: "the trial itself"}
    placed = {"data.root", "model.recompute", "compile"}
    for path, changed in _variants(trial):
        key = stages_of(changed, "data").key
        if path in placed:
            assert keys[key] == "the trial itself"
            continue
        assert key not in keys, f"{path} gives the key of {keys.get(key)}"
        keys[key] = path
    assert len(keys) > 50


def test_pretraining_is_shared_by_whatever_it_does_not_see():
    trial = TrialConfig()
    first = stages_of(trial, "data").pretrain.key
    shared = {path for path, changed in _variants(trial) if stages_of(changed, "data").pretrain.key == first}
    unseen = {"labelled_clips", "validation_clips", "test_clips", "label_fraction"}
    expected = {f"data.{name}" for name in unseen} | {"model.recompute", "compile"}
    assert {path for path in shared if not path.startswith("finetuning.")} == expected
    assert any(path.startswith("finetuning.") for path in shared)


def test_finetuning_is_shared_by_what_the_evaluation_alone_hears():
    trial = TrialConfig()
    first = stages_of(trial, "data").finetune.key
    shared = {path for path, changed in _variants(trial) if stages_of(changed, "data").finetune.key == first}
    assert shared == {"data.test_clips", "model.recompute", "compile"}


def test_only_what_follows_the_last_finished_stage_is_missing():
    stages = stages_of(TrialConfig(), "data")
    assert stages.missing(lambda stage: False) == stages.all()
    assert stages.missing(lambda stage: stage.kind == "pretrain") == [stages.finetune, stages.evaluate]
    assert stages.missing(lambda stage: stage.kind == "finetune") == [stages.evaluate], (
        "its parent may be gone"
    )
    assert stages.missing(lambda stage: stage.kind == "evaluate") == []


def test_identity_follows_data_version_and_parents():
    trial = TrialConfig()
    assert stages_of(trial, "a").key != stages_of(trial, "b").key
    scratch = dataclasses.replace(trial, pretraining=None)
    assert stages_of(scratch, "a").pretrain is None
    assert stages_of(scratch, "a").key != stages_of(trial, "a").key
    longer = dataclasses.replace(trial, pretraining=PretrainingConfig(steps=5))
    assert stages_of(longer, "a").finetune.settings == stages_of(trial, "a").finetune.settings
    assert stages_of(longer, "a").key != stages_of(trial, "a").key, "its parent is another"
    assert dataclasses.replace(STAGE, version=2).key != STAGE.key
    assert len(STAGE.key) == 64


def test_identity_is_the_same_everywhere():
    """A golden key: finished stages of earlier versions must still be found."""
    assert STAGE.key == "2845c3ef736fa096174ebfbbed4ee40d41d8f70bd068b0719349711173193ad6"
