"""What a store at a URL does besides: its copies on this machine, and leases in place of locks."""

import json
import multiprocessing
import os
import shutil
import threading
import time

import pytest
from fsspec.implementations.local import LocalFileSystem

from workbench.settings import ConfigError
from workbench.store import StageBusy, remote
from workbench.store.remote import RemoteStore

from .books import wait_for
from .stores import DAMAGED_FACTS, STAGE, again, half_way, never, resume, write


@pytest.fixture
def store(tmp_path):
    return RemoteStore(f"local://{tmp_path}/store", cache=tmp_path / "cache")


def test_what_this_machine_has_kept_hides_no_damage_of_the_store(store, tmp_path):
    store.obtain(STAGE, write("a"))
    DAMAGED_FACTS["metric"](tmp_path / "store" / "pretrain" / STAGE.key)
    assert not store.is_sound(STAGE)
    store.obtain(STAGE, write("c"))
    assert store.facts(STAGE)["metrics"] == {"loss": 1.0}


def test_of_two_checkpoints_the_newer_is_gone_on_with(store):
    elsewhere = again(store, "another machine")

    def stop_at(text, modified):
        def build(folder):
            path = folder / "checkpoint.safetensors"
            found.append(path.read_text() if path.exists() else None)
            path.write_text(text)
            os.utime(path, (modified, modified))
            raise KeyboardInterrupt

        return build

    found, now = [], time.time()
    attempts = ((store, "early", now - 60), (elsewhere, "later", now), (store, "last", now))
    for machine, text, modified in attempts:
        with pytest.raises(KeyboardInterrupt):
            machine.obtain(STAGE, stop_at(text, modified))
    assert found == [None, "early", "later"]


def test_a_folder_that_another_process_reads_is_left_as_it_is(store):
    store.obtain(STAGE, write("a"))
    elsewhere = [again(store, "another machine") for _ in range(2)]
    begun, folders = threading.Barrier(2), []

    def fetch(each):
        begun.wait(30)
        folders.append(each.fetch(STAGE).stat().st_ino)

    threads = [threading.Thread(target=fetch, args=(each,)) for each in elsewhere]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(folders) == 2
    assert folders[0] == folders[1]


def test_errors_of_an_object_store_are_errors_of_its_files(store):
    class Unreachable(Exception):
        """As packages of object stores have them: of no kind that Python knows."""

    class Broken(LocalFileSystem):
        def exists(self, path, **options):
            raise Unreachable("no route")

    store._files = remote._Files(Broken(), "local://there")
    with pytest.raises(OSError, match="local://there: Unreachable: no route"):
        store.has(STAGE)


def test_a_place_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(ConfigError, match="store: nosuch://bucket/stages cannot be opened"):
        RemoteStore("nosuch://bucket/stages", cache=tmp_path)


@pytest.fixture
def quick_leases(monkeypatch):
    monkeypatch.setattr(remote, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(remote, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.2)


def _die_at_work(store, begun, may_die):
    def build(folder):
        (folder / "checkpoint.safetensors").write_text("half way")
        begun.set()
        may_die.wait(60)
        os._exit(1)

    store.obtain(STAGE, build)


def test_what_a_machine_left_when_it_died_is_taken_over_by_another(store, tmp_path, quick_leases):
    fork = multiprocessing.get_context("fork")
    begun, may_die = fork.Event(), fork.Event()
    process = fork.Process(target=_die_at_work, args=(store, begun, may_die))
    process.start()
    assert begun.wait(30)
    (lease,) = (tmp_path / "store" / "locks").iterdir()
    first = lease.read_text()
    wait_for(lambda: lease.read_text() not in ("", first))  # it is renewed
    may_die.set()
    process.join(30)
    elsewhere = again(store, "another machine")
    held = json.loads(lease.read_text())
    lease.write_text(json.dumps(held | {"renewed": time.time() + 60}))
    with pytest.raises(StageBusy):
        elsewhere.obtain(STAGE, never, wait=False)
    lease.write_text(json.dumps(held | {"renewed": time.time() - 60}))
    assert (elsewhere.obtain(STAGE, resume) / "weights").read_text() == "a"
    assert again(store, "a third").is_sound(STAGE)
    assert not (tmp_path / "store" / "pretrain" / f"{STAGE.key}.work").exists()


def test_what_a_hopeless_attempt_was_uploading_is_removed_too(store, tmp_path, quick_leases, monkeypatch):
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
        half_way(folder)
        assert begun.wait(30)
        raise FloatingPointError

    monkeypatch.setattr(store, "_push_checkpoint", push_and_tell)
    monkeypatch.setattr(store._files, "put_file", put_slowly)
    with pytest.raises(FloatingPointError):
        store.obtain(STAGE, diverge, hopeless=(FloatingPointError,))
    assert ended.wait(30)
    assert not (tmp_path / "store" / STAGE.kind / f"{STAGE.key}.work").exists()


def test_a_lease_is_renewed_while_a_checkpoint_is_slowly_uploaded(store, quick_leases, monkeypatch):

    def slowly(stage, uploaded):
        time.sleep(3)
        return uploaded

    monkeypatch.setattr(store, "_push_checkpoint", slowly)

    def build(folder):
        time.sleep(2)  # longer than a lease
        with pytest.raises(StageBusy):
            again(store, "another machine").obtain(STAGE, never, wait=False)
        return write("a")(folder)

    store.obtain(STAGE, build)
    assert not store.is_busy(STAGE)


def test_a_lease_that_is_anothers_by_now_is_neither_renewed_nor_removed(store, tmp_path):
    taken = json.dumps({"owner": "another", "renewed": time.time() + 60})

    def build(folder):
        (lease,) = (tmp_path / "store" / "locks").iterdir()
        lease.write_text(taken)
        store._renew(lease.name, "me")
        assert lease.read_text() == taken
        return write("a")(folder)

    store.obtain(STAGE, build)
    (lease,) = (tmp_path / "store" / "locks").iterdir()
    assert lease.read_text() == taken


def test_a_lease_that_another_removed_does_not_fail_the_stage(store, tmp_path):

    def build(folder):
        (lease,) = (tmp_path / "store" / "locks").iterdir()
        lease.unlink()
        return write("a")(folder)

    store.obtain(STAGE, build)
    assert store.has(STAGE)


def test_a_lease_that_cannot_be_read_holds_until_it_is_as_old_as_one_becomes(store, tmp_path, quick_leases):
    """Somebody is writing it, or has died of that."""
    lease = tmp_path / "store" / "locks" / f"{STAGE.kind}-{STAGE.key[:24]}"
    lease.parent.mkdir(parents=True)
    for content in ("", "{", "[]", '{"owner": "another", "renewed": "now"}'):
        lease.write_text(content)
        os.utime(lease, (time.time() + 60,) * 2)
        assert store.is_busy(STAGE)
        with pytest.raises(StageBusy):
            store.obtain(STAGE, never, wait=False)
        assert lease.read_text() == content
    os.utime(lease, (time.time() - 60,) * 2)
    assert not store.is_busy(STAGE)
    store.obtain(STAGE, write("a"), wait=False)


def test_a_lease_that_cannot_be_read_and_has_no_time_runs_out_from_when_it_is_seen(
    store, tmp_path, monkeypatch
):
    lease = tmp_path / "store" / "locks" / f"{STAGE.kind}-{STAGE.key[:24]}"
    lease.parent.mkdir(parents=True)
    lease.write_text("")
    monkeypatch.setattr(remote, "_modified", lambda info: 0.0)
    assert store.is_busy(STAGE)
    monkeypatch.setattr(remote, "LEASE_SECONDS", 0.0)
    assert not store.is_busy(STAGE)


@pytest.fixture
def suspended(tmp_path, monkeypatch):
    """`suspended()`: what builds a stage has renewed its lease last a minute ago."""
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.1)

    def suspended():
        (lease,) = (tmp_path / "store" / "locks").iterdir()
        said = json.loads(lease.read_text())
        lease.write_text(json.dumps(said | {"renewed": said["renewed"] - 2 * remote.LEASE_SECONDS}))

    return suspended


def test_what_another_has_published_while_a_process_was_suspended_is_adopted(store, tmp_path, suspended):

    def build(folder):
        suspended()
        again(store, "another machine").obtain(STAGE, write("theirs"))
        return write("ours")(folder)

    assert (store.obtain(STAGE, build) / "weights").read_text() == "theirs"
    assert again(store, "a third").read(STAGE, "weights") == b"theirs"
    assert not list(tmp_path.rglob(f"{STAGE.key}.work"))


def test_no_checkpoint_is_uploaded_beside_another_that_is_at_the_stage_by_now(store, tmp_path, suspended):
    uploaded = tmp_path / "store" / STAGE.kind / f"{STAGE.key}.work" / "checkpoint.safetensors"

    def ours(folder):
        (folder / "checkpoint.safetensors").write_text("ours")
        store._push_checkpoint(STAGE, 0.0)
        assert uploaded.read_text() == "ours"
        suspended()
        again(store, "another machine").obtain(STAGE, theirs)
        return write("a")(folder)

    def theirs(folder):
        uploaded.write_text("theirs")
        store._push_checkpoint(STAGE, 0.0)
        assert uploaded.read_text() == "theirs"
        return write("b")(folder)

    store.obtain(STAGE, ours)
