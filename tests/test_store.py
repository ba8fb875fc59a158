"""What a store does with damage, kills and company: in a folder, and at a URL."""

import contextlib
import errno
import json
import math
import multiprocessing
import os
import shutil
import time
import types

import pytest
import torch

from workbench.stages import run_trial, stages_of
from workbench.store import FACTS, DamagedFacts, StageBusy, Store
from workbench.store import stage as stage_module
from workbench.store.remote import RemoteStore
from workbench.training.loop import Diverged
from workbench.training.tracker import SilentTracker

from .stores import DAMAGED_FACTS, STAGE, again, at_work, half_way, never, resume, write

DAMAGES = {
    "a changed file": lambda folder: (folder / "weights").write_text("b"),
    "a lost file": lambda folder: (folder / "weights").unlink(),
    **DAMAGED_FACTS,
}


def test_a_stage_is_built_once_and_found_afterwards(store):
    assert not store.has(STAGE)
    folder = store.obtain(STAGE, write("a"))
    assert store.has(STAGE)
    assert store.obtain(STAGE, never) == folder
    assert (again(store).obtain(STAGE, never) / "weights").read_text() == "a"
    facts = store.facts(STAGE)
    assert facts["settings"] == {"steps": 3}
    assert facts["metrics"] == {"loss": 1.0}
    assert facts["seconds"] >= 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_file_of_a_stage_is_read_as_it_was_written_or_not_at_all(store, damage, tmp_path):
    assert store.read(STAGE, "weights") is None
    store.obtain(STAGE, write("a"))
    other = again(store)
    assert other.read(STAGE, "weights") == b"a"
    assert other.read(STAGE, "other") is None
    if isinstance(store, RemoteStore):
        assert not other.path(STAGE).exists(), "nothing else is brought here"
    DAMAGES[damage](tmp_path / "store" / "pretrain" / STAGE.key)
    assert other.read(STAGE, "weights") is None


@pytest.mark.parametrize("damage", DAMAGED_FACTS)
def test_what_a_stage_says_is_read_as_it_was_written_or_not_at_all(store, damage, tmp_path):
    store.obtain(STAGE, write("a"))
    DAMAGED_FACTS[damage](tmp_path / "store" / "pretrain" / STAGE.key)
    other = again(store)
    assert not other.is_sound(STAGE)
    with pytest.raises(DamagedFacts):
        other.facts(STAGE)


def test_figures_that_are_no_number_are_kept_as_such(store):
    store.obtain(STAGE, lambda folder: {"metrics": {"loss": math.nan}})
    assert math.isnan(store.facts(STAGE)["metrics"]["loss"])
    assert store.is_sound(STAGE)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_stage_is_set_aside_and_built_again(store, damage, tmp_path):
    store.obtain(STAGE, write("a"))
    folder = tmp_path / "store" / "pretrain" / STAGE.key
    DAMAGES[damage](folder)
    other, said = again(store), []
    other.report = said.append
    assert not other.is_sound(STAGE)
    assert (other.obtain(STAGE, write("c")) / "weights").read_text() == "c"
    assert len(list(folder.parent.glob("*.damaged-*"))) == 1
    assert len(said) == 1
    assert STAGE.key in said[0]
    assert "set aside" in said[0]
    assert other.is_sound(STAGE)


def test_an_attempt_that_fails_publishes_nothing_and_leaves_its_checkpoint(store):
    def fail(folder):
        (folder / "checkpoint.safetensors").write_text("half way")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.obtain(STAGE, fail)
    assert not store.has(STAGE)

    folder = store.obtain(STAGE, resume)
    assert sorted(p.name for p in folder.iterdir()) == [FACTS, "weights"]
    assert sorted(json.loads((folder / FACTS).read_text())["sha256"]) == ["weights"]


def _killed(*arguments):
    raise RuntimeError("killed")


@pytest.mark.parametrize("moment", ["checksums", "stage.json", "publishing"])
def test_a_kill_after_the_training_leaves_its_checkpoint(store, moment, monkeypatch):
    with monkeypatch.context() as context:
        match moment:
            case "checksums":
                context.setattr(stage_module, "_sha256", _killed)
            case "stage.json":
                context.setattr(stage_module.Path, "replace", _killed)
            case "publishing":
                context.setattr(store, "_publish" if isinstance(store, RemoteStore) else "_finish", _killed)
        with pytest.raises(RuntimeError, match="killed"):
            store.obtain(STAGE, half_way)
    assert not store.has(STAGE)
    folder = store.obtain(STAGE, resume)
    assert sorted(p.name for p in folder.iterdir()) == [FACTS, "weights"]
    assert again(store).is_sound(STAGE)


def test_what_is_whole_is_not_built_again_though_a_kill_came_before_it_was_published(store, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(type(store), "_finish", _killed)
        with pytest.raises(RuntimeError, match="killed"):
            store.obtain(STAGE, half_way)
    assert (store.obtain(STAGE, never) / "weights").read_text() == "a"
    assert again(store).is_sound(STAGE)


def test_each_build_is_noted_as_it_begins(tmp_path):
    store = Store(tmp_path)
    for _ in range(2):
        store.obtain(STAGE, write("a"))
    assert store.builds() == {STAGE.key: 1}
    shutil.rmtree(store.path(STAGE))
    with pytest.raises(FloatingPointError):
        store.obtain(STAGE, _stop_half_way)
    assert store.builds() == {STAGE.key: 2}
    store.obtain(STAGE, resume)
    assert again(store).builds() == {STAGE.key: 2}, "what is resumed is not computed twice"


def _stop_half_way(folder):
    half_way(folder)
    raise FloatingPointError


def test_what_is_asked_for_was_last_of_use_now(tmp_path):
    store = Store(tmp_path)
    folder = store.obtain(STAGE, write("a"))
    for path in (folder, *folder.iterdir()):
        os.utime(path, (0, 0))
    assert store.entries()[0].used == 0
    store.fetch(STAGE)
    assert store.entries()[0].used > time.time() - 60


def test_what_is_gone_while_it_is_listed_is_left_out(tmp_path, monkeypatch):
    store = Store(tmp_path)
    folder, entry = store.obtain(STAGE, write("a")), store._entry

    def entry_of_what_another_removes(path):
        shutil.rmtree(folder)
        return entry(path)

    monkeypatch.setattr(store, "_entry", entry_of_what_another_removes)
    assert store.entries() == []


def test_a_hopeless_attempt_is_removed_before_anybody_else_can_begin(store, monkeypatch, tmp_path):
    is_busy, discard = [], store._discard_work

    def watch(stage):
        is_busy.append(again(store).is_busy(stage))
        discard(stage)

    def diverge(folder):
        half_way(folder)
        raise FloatingPointError

    monkeypatch.setattr(store, "_discard_work", watch)
    with pytest.raises(FloatingPointError):
        store.obtain(STAGE, diverge, hopeless=(FloatingPointError,))
    assert is_busy == [True]
    assert not list(tmp_path.rglob(f"{STAGE.key}.work"))


def test_a_trial_whose_stages_are_all_there_needs_no_store_that_can_be_written(
    store, tiny_trial, tmp_path, monkeypatch
):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    for stage in stages_of(tiny_trial, "data").all():
        store.obtain(stage, write("a"))
    monkeypatch.setattr(store, "_leased" if isinstance(store, RemoteStore) else "_locked", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    result = _run(tiny_trial, store, tmp_path)
    assert result.metrics == {"loss": 1.0}


def _run(trial, store, tmp_path):
    return run_trial(
        trial,
        "data",
        store=store,
        data_root=tmp_path,
        device=torch.device("cpu"),
        tracker=SilentTracker(),
    )


def test_a_trial_that_diverged_leaves_the_next_attempt_alone(tiny_trial, tmp_path, monkeypatch):
    """Another process may begin it as soon as it is let."""
    store = Store(tmp_path)
    locked, work = store._locked, store.work(stages_of(tiny_trial, "data").pretrain)

    @contextlib.contextmanager
    def followed(*arguments, **options):
        try:
            with locked(*arguments, **options):
                yield
        finally:
            work.mkdir(exist_ok=True)
            (work / "checkpoint.safetensors").write_text("another's")

    def diverge(config, pool, run):
        raise Diverged("pretrain", 3, {})

    monkeypatch.setattr(store, "_locked", followed)
    monkeypatch.setattr("workbench.stages.pretrain", diverge)
    monkeypatch.setattr("workbench.stages.load_splits", lambda *arguments: types.SimpleNamespace(pool=None))
    with pytest.raises(Diverged):
        _run(tiny_trial, store, tmp_path)
    assert (work / "checkpoint.safetensors").read_text() == "another's"


def _obtain(store, log):
    def build(folder):
        with log.open("a") as file:
            file.write("built\n")
        return write("a")(folder)

    store.obtain(STAGE, build)


def test_processes_that_want_the_same_stage_build_it_once(store, tmp_path):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    stores = [again(store, f"machine {number % 3}") for number in range(6)]
    processes = [context.Process(target=_obtain, args=(each, log)) for each in stores]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 6
    assert log.read_text() == "built\n"


def test_who_does_not_want_to_wait_is_told_that_a_stage_is_busy(store):
    assert not store.is_busy(STAGE)
    with at_work(store):
        assert store.is_busy(STAGE)
        with pytest.raises(StageBusy):
            store.obtain(STAGE, never, wait=False)
    assert not store.is_busy(STAGE)
    assert store.obtain(STAGE, never, wait=False) == store.path(STAGE)


def test_the_seconds_of_earlier_attempts_are_counted(store):
    """They are its part already; what is spent now is shared by those that are built at once."""
    store.obtain(STAGE, lambda folder: {"metrics": {}, "earlier_seconds": 100.0, "shared_by": 8})
    assert 100 <= store.facts(STAGE)["seconds"] < 110
    assert not {"earlier_seconds", "shared_by"} & store.facts(STAGE).keys()
