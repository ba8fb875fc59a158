"""Stages by content: what changes an identity, and what the store does with damage, kills and company."""

import dataclasses
import json
import multiprocessing

import pytest

from workbench.config import CorpusData, Cosine, Esc50Data, PretrainingConfig, TrialConfig
from workbench.stages import stages_of
from workbench.store import FACTS, Stage, Store

STAGE = Stage("pretrain", 1, {"steps": 3})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def _write(text):
    def build(folder):
        (folder / "weights").write_text(text)
        return {"metrics": {"loss": 1.0}}

    return build


def _never(folder):
    raise AssertionError("built again")


# --- identity -----------------------------------------------------------------------------------------------

# What another value may be, where one cannot be told from the field's type.
OTHERS = {
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


@pytest.mark.parametrize("data", [CorpusData(label_fraction=0.5), Esc50Data(corpus_clips=8)])
def test_every_setting_takes_part_in_the_trials_identity(data):
    trial = TrialConfig(data=data)
    keys = {stages_of(trial, "data").key: "the trial itself"}
    placed = {"data.root"}
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
    assert {path for path in shared if not path.startswith("finetuning.")} == {f"data.{n}" for n in unseen}
    assert any(path.startswith("finetuning.") for path in shared)


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


# --- the store ----------------------------------------------------------------------------------------------


def test_a_stage_is_built_once_and_found_afterwards(store):
    assert not store.has(STAGE)
    folder = store.obtain(STAGE, _write("a"))
    assert store.has(STAGE)
    assert store.obtain(STAGE, _never) == folder
    assert (folder / "weights").read_text() == "a"
    facts = store.facts(STAGE)
    assert facts["settings"] == {"steps": 3}
    assert facts["metrics"] == {"loss": 1.0}
    assert facts["seconds"] >= 0


@pytest.mark.parametrize("damage", ["change", "remove", "facts"])
def test_a_damaged_stage_is_set_aside_and_built_again(store, damage, capsys):
    folder = store.obtain(STAGE, _write("a"))
    match damage:
        case "change":
            (folder / "weights").write_text("b")
        case "remove":
            (folder / "weights").unlink()
        case "facts":
            (folder / FACTS).write_text("{")
    assert (store.obtain(STAGE, _write("c")) / "weights").read_text() == "c"
    assert len(list(folder.parent.glob("*.damaged-*"))) == 1
    assert "set aside" in capsys.readouterr().out


def test_an_attempt_that_fails_publishes_nothing_and_leaves_its_checkpoint(store):
    def fail(folder):
        (folder / "checkpoint.safetensors").write_text("half way")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.obtain(STAGE, fail)
    assert not store.has(STAGE)

    def resume(folder):
        assert (folder / "checkpoint.safetensors").read_text() == "half way"
        return _write("a")(folder)

    folder = store.obtain(STAGE, resume)
    assert sorted(p.name for p in folder.iterdir()) == [FACTS, "weights"]
    assert sorted(json.loads((folder / FACTS).read_text())["sha256"]) == ["weights"]


def _obtain(root, log):
    def build(folder):
        with log.open("a") as file:
            file.write("built\n")
        return _write("a")(folder)

    Store(root).obtain(STAGE, build)


def test_processes_that_want_the_same_stage_build_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    processes = [context.Process(target=_obtain, args=(tmp_path / "store", log)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 6
    assert log.read_text() == "built\n"
