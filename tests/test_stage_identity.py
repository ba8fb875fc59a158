"""Stages by content: what changes an identity, and what does not."""

import dataclasses
import typing

import pytest

from workbench.config import PretrainingConfig, TrialConfig
from workbench.data_config import CorpusData, DataConfig, Esc50Data
from workbench.stages import stages_of

from .stores import STAGE
from .variants import variants

DATA = [CorpusData(label_fraction=0.5), Esc50Data(corpus_clips=8)]
DATA += [kind() for kind in typing.get_args(DataConfig) if kind not in (CorpusData, Esc50Data)]


@pytest.mark.parametrize("data", DATA, ids=lambda data: data.kind)
def test_every_setting_takes_part_in_the_trials_identity(data):
    trial = TrialConfig(data=data)
    keys = {stages_of(trial, "data").key: "the trial itself"}
    placed = {"data.root", "model.recompute", "compile"}
    for path, changed in variants(trial):
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
    shared = {path for path, changed in variants(trial) if stages_of(changed, "data").pretrain.key == first}
    unseen = {"labelled_clips", "validation_clips", "test_clips", "label_fraction"}
    expected = {f"data.{name}" for name in unseen} | {"model.recompute", "compile"}
    assert {path for path in shared if not path.startswith("finetuning.")} == expected
    assert any(path.startswith("finetuning.") for path in shared)


def test_finetuning_is_shared_by_what_the_evaluation_alone_hears():
    trial = TrialConfig()
    first = stages_of(trial, "data").finetune.key
    shared = {path for path, changed in variants(trial) if stages_of(changed, "data").finetune.key == first}
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
