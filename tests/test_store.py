"""Stages by content: what changes an identity, and what the store does with damage, kills and company."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import threading
import time
import types

import pytest
import torch

from workbench.config import Cosine, PretrainingConfig, TrialConfig
from workbench.data_config import CorpusData, Esc50Data, FolderData
from workbench.stages import run_trial, stages_of
from workbench.store import FACTS, Stage, StageBusy, Store, remote
from workbench.store import stage as stage_module
from workbench.store.__main__ import _bytes, main
from workbench.store.remote import RemoteStore
from workbench.training.loop import Diverged
from workbench.training.tracker import SilentTracker

STAGE = Stage("pretrain", 1, {"steps": 3})


@pytest.fixture(params=["folder", "URL"])
def store(request, tmp_path):
    """Both kinds keep one contract; `local://` is a file system that is used by its URL alone."""
    if request.param == "folder":
        return Store(tmp_path / "store")
    return RemoteStore(f"local://{tmp_path}/store", cache=tmp_path / "cache")


def _again(store, name="again"):
    """The same store, from another process or machine."""
    if isinstance(store, RemoteStore):
        return RemoteStore(store.location, cache=store.root.with_name(name))
    return Store(store.root)


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


# --- the store ----------------------------------------------------------------------------------------------


def test_a_stage_is_built_once_and_found_afterwards(store):
    assert not store.has(STAGE)
    folder = store.obtain(STAGE, _write("a"))
    assert store.has(STAGE)
    assert store.obtain(STAGE, _never) == folder
    assert (_again(store).obtain(STAGE, _never) / "weights").read_text() == "a"
    facts = store.facts(STAGE)
    assert facts["settings"] == {"steps": 3}
    assert facts["metrics"] == {"loss": 1.0}
    assert facts["seconds"] >= 0


@pytest.mark.parametrize("damage", ["change", "remove", "facts"])
def test_a_damaged_stage_is_set_aside_and_built_again(store, damage, tmp_path):
    store.obtain(STAGE, _write("a"))
    folder = tmp_path / "store" / "pretrain" / STAGE.key
    match damage:
        case "change":
            (folder / "weights").write_text("b")
        case "remove":
            (folder / "weights").unlink()
        case "facts":
            (folder / FACTS).write_text("{")
    other, said = _again(store), []
    other.report = said.append
    assert not other.is_sound(STAGE)
    assert (other.obtain(STAGE, _write("c")) / "weights").read_text() == "c"
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

    folder = store.obtain(STAGE, _resume)
    assert sorted(p.name for p in folder.iterdir()) == [FACTS, "weights"]
    assert sorted(json.loads((folder / FACTS).read_text())["sha256"]) == ["weights"]


def _half_way(folder):
    (folder / "checkpoint.safetensors").write_text("half way")
    (folder / "weights.1.tmp").write_text("half writ")
    return _write("a")(folder)


def _resume(folder):
    assert (folder / "checkpoint.safetensors").read_text() == "half way"
    return _write("a")(folder)


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
            store.obtain(STAGE, _half_way)
    assert not store.has(STAGE)
    folder = store.obtain(STAGE, _resume)
    assert sorted(p.name for p in folder.iterdir()) == [FACTS, "weights"]
    assert _again(store).is_sound(STAGE)


def test_a_hopeless_attempt_is_removed_before_anybody_else_can_begin(store, monkeypatch, tmp_path):
    is_busy, discard = [], store._discard_work

    def watch(stage):
        is_busy.append(_again(store).is_busy(stage))
        discard(stage)

    def diverge(folder):
        _half_way(folder)
        raise FloatingPointError

    monkeypatch.setattr(store, "_discard_work", watch)
    with pytest.raises(FloatingPointError):
        store.obtain(STAGE, diverge, hopeless=(FloatingPointError,))
    assert is_busy == [True]
    assert not list(tmp_path.rglob(f"{STAGE.key}.work"))


def test_what_a_hopeless_attempt_was_uploading_is_removed_too(tmp_path, quick_leases, monkeypatch):
    store = RemoteStore(f"local://{tmp_path}/store", cache=tmp_path / "cache")
    push, put, begun, ended = (
        store._push_checkpoint,
        store._files.put_file,
        threading.Event(),
        threading.Event(),
    )

    def push_and_tell(stage, uploaded):
        try:
            return push(stage, uploaded)
        finally:
            ended.set()

    def put_slowly(source, target):
        kept = shutil.copy(source, tmp_path / "kept")  # what is open can be read after it was removed
        begun.set()
        time.sleep(0.5)
        store._files.makedirs(target.rpartition("/")[0], exist_ok=True)  # an object store has no folders
        put(str(kept), target)

    def diverge(folder):
        _half_way(folder)
        begun.wait(30)
        raise FloatingPointError

    monkeypatch.setattr(store, "_push_checkpoint", push_and_tell)
    monkeypatch.setattr(store._files, "put_file", put_slowly)
    with pytest.raises(FloatingPointError):
        store.obtain(STAGE, diverge, hopeless=(FloatingPointError,))
    ended.wait(30)
    assert not (tmp_path / "store" / STAGE.kind / f"{STAGE.key}.work").exists()


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
        run_trial(
            tiny_trial,
            "data",
            store=store,
            data_root=tmp_path,
            device=torch.device("cpu"),
            tracker=SilentTracker(),
        )
    assert (work / "checkpoint.safetensors").read_text() == "another's"


def _obtain(store, log):
    def build(folder):
        with log.open("a") as file:
            file.write("built\n")
        return _write("a")(folder)

    store.obtain(STAGE, build)


def test_processes_that_want_the_same_stage_build_it_once(store, tmp_path):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    stores = [_again(store, f"machine {number % 3}") for number in range(6)]
    processes = [context.Process(target=_obtain, args=(each, log)) for each in stores]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 6
    assert log.read_text() == "built\n"


@contextlib.contextmanager
def _at_work(store):
    """Another thread is at the stage; to the kernel, a lock on another open file is another process's."""
    begun, end = threading.Event(), threading.Event()

    def build(folder):
        begun.set()
        end.wait(30)
        return {"metrics": {}}

    thread = threading.Thread(target=_again(store).obtain, args=(STAGE, build))
    thread.start()
    begun.wait(30)
    try:
        yield
    finally:
        end.set()
        thread.join(30)


def test_who_does_not_want_to_wait_is_told_that_a_stage_is_busy(store):
    assert not store.is_busy(STAGE)
    with _at_work(store):
        assert store.is_busy(STAGE)
        with pytest.raises(StageBusy):
            store.obtain(STAGE, _never, wait=False)
    assert not store.is_busy(STAGE)
    assert store.obtain(STAGE, _never, wait=False) == store.path(STAGE)


@pytest.fixture
def quick_leases(monkeypatch):
    monkeypatch.setattr(remote, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(remote, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.2)


def _die_at_work(store):
    def build(folder):
        (folder / "checkpoint.safetensors").write_text("half way")
        time.sleep(1.5)  # longer than a lease: it is renewed meanwhile
        os._exit(1)

    store.obtain(STAGE, build)


def test_what_a_machine_left_when_it_died_is_taken_over_by_another(tmp_path, quick_leases):
    store = RemoteStore(f"local://{tmp_path}/store", cache=tmp_path / "cache")
    process = multiprocessing.get_context("fork").Process(target=_die_at_work, args=(store,))
    process.start()
    time.sleep(1.2)
    assert store.is_busy(STAGE)
    process.join(30)
    elsewhere = _again(store, "another machine")
    with pytest.raises(StageBusy):
        elsewhere.obtain(STAGE, _never, wait=False)

    assert (elsewhere.obtain(STAGE, _resume) / "weights").read_text() == "a"
    assert _again(store, "a third").is_sound(STAGE)
    assert not (tmp_path / "store" / "pretrain" / f"{STAGE.key}.work").exists()


def test_a_lease_is_renewed_while_a_checkpoint_is_slowly_uploaded(tmp_path, quick_leases, monkeypatch):
    store = RemoteStore(f"local://{tmp_path}/store", cache=tmp_path / "cache")

    def slowly(stage, uploaded):
        time.sleep(3)
        return uploaded

    monkeypatch.setattr(store, "_push_checkpoint", slowly)

    def build(folder):
        time.sleep(2)  # longer than a lease
        with pytest.raises(StageBusy):
            _again(store, "another machine").obtain(STAGE, _never, wait=False)
        return _write("a")(folder)

    store.obtain(STAGE, build)
    assert not store.is_busy(STAGE)


def test_a_lease_that_is_anothers_by_now_is_neither_renewed_nor_removed(tmp_path, quick_leases):
    store = RemoteStore(f"local://{tmp_path}/store", cache=tmp_path / "cache")
    taken = json.dumps({"owner": "another", "renewed": time.time() + 60})

    def build(folder):
        (lease,) = (tmp_path / "store" / "locks").iterdir()
        lease.write_text(taken)
        time.sleep(0.3)
        return _write("a")(folder)

    store.obtain(STAGE, build)
    (lease,) = (tmp_path / "store" / "locks").iterdir()
    assert lease.read_text() == taken


def test_a_lease_that_another_removed_does_not_fail_the_stage(tmp_path):
    store = RemoteStore(f"local://{tmp_path}/store", cache=tmp_path / "cache")

    def build(folder):
        (lease,) = (tmp_path / "store" / "locks").iterdir()
        lease.unlink()
        return _write("a")(folder)

    store.obtain(STAGE, build)
    assert store.has(STAGE)


def test_the_seconds_of_earlier_attempts_are_counted(store):
    store.obtain(STAGE, lambda folder: {"metrics": {}, "earlier_seconds": 100.0})
    assert 100 <= store.facts(STAGE)["seconds"] < 110
    assert "earlier_seconds" not in store.facts(STAGE)


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def kept(store, tmp_path):
    """Three stages, the second needed by a study, each a day longer unused than the one before it."""
    if isinstance(store, RemoteStore):
        (tmp_path / "places.yaml").write_text(f"store: {store.location}\n")
    stages = [Stage("pretrain", 1, _settings(seed)) for seed in range(3)]
    for days, stage in enumerate(stages):
        store.obtain(stage, _write("x" * 1000))
        folder = tmp_path / "store" / stage.kind / stage.key
        for path in (*folder.iterdir(), folder):
            os.utime(path, (time.time() - days * 86400,) * 2)
    store.refer("mine", str(tmp_path), [stages[1].key])
    return store, stages


def _settings(seed):
    model = {"num_blocks": 3, "width": 64, "num_heads": 4}
    return {"model": model, "pretraining": {"steps": 7}, "seed": seed}


def _left(store, stages):
    store = _again(store)
    return [store.has(stage) for stage in stages]


def test_ls_and_show_say_what_is_there_and_who_needs_it(kept, tmp_path, capsys):
    _, stages = kept
    assert main(["ls", "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(stage.key[:12] in printed for stage in stages)
    assert "mine" in printed
    assert main(["show", stages[1].key[:9], "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "needed by mine" in printed
    assert stages[1].key in printed
    assert main(["show", "zzz", "--root", str(tmp_path)]) == 2
    assert "no stage begins" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ([], [False, True, True]),
        (["--forget", "mine"], [False, False, True]),
        (["--forget", "mine@/elsewhere"], [False, True, False]),
        (["--forget", "mine", "--forget", "mine@/elsewhere"], [False, False, False]),
        (["--forget", "mine@/elsewhere", "--dry-run"], [True, True, True]),
    ],
)
def test_results_in_several_places_share_a_store_and_a_study(kept, tmp_path, capsys, options, left):
    store, stages = kept
    store.refer("mine", "/elsewhere", [stages[2].key])
    assert main(["ls", "--root", str(tmp_path)]) == 0
    lines = {line.split()[1]: line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:4]}
    assert lines == {
        stages[0].key[:12]: "-",
        stages[1].key[:12]: "mine",
        stages[2].key[:12]: "mine@/elsewhere",
    }
    assert main(["show", stages[2].key, "--root", str(tmp_path)]) == 0
    assert "needed by mine@/elsewhere" in capsys.readouterr().out
    assert main(["gc", "--root", str(tmp_path), *options]) == 0
    assert _left(store, stages) == left


def test_what_a_study_needs_is_replaced_by_what_it_needs_now(kept, tmp_path):
    store, stages = kept
    store.refer("mine", str(tmp_path), [stages[0].key])
    assert list(store.references()) == [stages[0].key]


def test_what_was_said_before_files_were_named_after_the_results_still_counts(kept, tmp_path):
    store, stages = kept
    (path,) = (tmp_path / "store" / "studies").iterdir()
    path.rename(path.with_name("mine.json"))
    assert main(["gc", "--root", str(tmp_path)]) == 0
    assert _left(store, stages) == [False, True, False]
    assert main(["gc", "--root", str(tmp_path), "--forget", "mine"]) == 0
    assert _left(store, stages) == [False, False, False]
    assert not list(path.parent.iterdir())


def test_verify_names_what_is_damaged(kept, tmp_path, capsys):
    _, stages = kept
    assert main(["verify", "--root", str(tmp_path)]) == 0
    (tmp_path / "store" / "pretrain" / stages[0].key / "weights").write_text("y")
    assert main(["verify", "--root", str(tmp_path)]) == 1
    assert f"pretrain/{stages[0].key}: weights is not what was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ([], [False, True, False]),
        (["--dry-run"], [True, True, True]),
        (["--older-than", "1.5"], [True, True, False]),
        (["--max-size", "4KB"], [True, True, False]),
        (["--max-size", "1GB"], [True, True, True]),
        (["--force"], [False, False, False]),
        (["--forget", "mine"], [False, False, False]),
        (["--force", "--older-than", "0.5"], [True, False, False]),
    ],
)
def test_gc_deletes_what_no_study_needs_by_age_and_size(kept, tmp_path, options, left):
    store, stages = kept
    assert main(["gc", "--root", str(tmp_path), *options]) == 0
    assert _left(store, stages) == left


def test_gc_leaves_an_attempt_that_a_study_will_go_on_with(kept, tmp_path, capsys):
    """Ctrl-C, and some room made on the disk, cost no checkpoint."""
    store, stages = kept
    stopped = Stage("finetune", 1, {})
    with pytest.raises(RuntimeError):
        store.obtain(stopped, _fail)
    store.refer("mine", str(tmp_path), [stages[1].key, stopped.key])
    if not isinstance(store, RemoteStore):
        assert main(["ls", "--root", str(tmp_path)]) == 0
        assert re.search(rf"{stopped.key[:12]} +unfinished attempt .* mine +\n", capsys.readouterr().out)
    assert main(["gc", "--root", str(tmp_path)]) == 0
    assert _left(store, stages) == [False, True, False]
    store.obtain(stopped, _resume)


def test_gc_leaves_what_a_process_is_at_and_removes_what_was_given_up(kept, tmp_path, capsys):
    store, _ = kept
    with pytest.raises(RuntimeError):
        store.obtain(Stage("finetune", 1, {}), _fail)
    with _at_work(store):
        assert main(["gc", "--root", str(tmp_path)]) == 0
    assert store.has(STAGE)
    assert store.facts(STAGE)["metrics"] == {}
    if isinstance(store, RemoteStore):
        return
    assert not list((store.root / "finetune").iterdir())
    assert f"kept: pretrain/{STAGE.key}.work, a process is at it" in capsys.readouterr().out


def _fail(folder):
    (folder / "checkpoint.safetensors").write_text("half way")
    raise RuntimeError("killed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-size", "much"], "such as 500MB or 20GB, is 'much'"),
        (["--max-size", "1.2.3GB"], "such as 500MB or 20GB, is '1.2.3GB'"),
        (["--max-size", ".GB"], "is '.GB'"),
        (["--max-size", ""], "is ''"),
        (["--forget", "../x"], "there are mine"),
    ],
)
def test_gc_refuses_what_it_does_not_understand(kept, tmp_path, capsys, options, words):
    store, stages = kept
    assert main(["gc", "--root", str(tmp_path), *options]) == 2
    assert words in capsys.readouterr().err
    assert _left(store, stages) == [True, True, True]


@pytest.mark.parametrize(
    ("text", "size"), [("500B", 500), ("1.5 kb", 1500), ("2.MB", 2e6), (".5GB", 5e8), ("3tb", 3e12)]
)
def test_sizes_are_read_in_any_unit(text, size):
    assert _bytes(text) == size
