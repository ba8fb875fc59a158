"""`python -m workbench.store`: what is there, why, and what may go."""

import os
import re
import time

import pytest

from workbench.settings import STAGES
from workbench.store import Stage, Store
from workbench.store.__main__ import BUSY, NEEDED, YOUNG, _bytes, main
from workbench.store.remote import RemoteStore

from .stores import DAMAGED_FACTS, STAGE, again, at_work, resume, write


@pytest.fixture
def kept(store, tmp_path):
    """Three stages, the second needed by a study, each a day longer unused than the one before it."""
    if isinstance(store, RemoteStore):
        (tmp_path / "places.yaml").write_text(f"store: {store.location}\n")
    stages = [Stage("pretrain", 1, _settings(seed)) for seed in range(3)]
    for days, stage in enumerate(stages):
        store.obtain(stage, write("x" * 1000))
        folder = tmp_path / "store" / stage.kind / stage.key
        for path in (*folder.iterdir(), folder):
            os.utime(path, (time.time() - days * 86400,) * 2)
    store.refer("mine", str(tmp_path), [stages[1].key])
    return store, stages


def _settings(seed):
    model = {"num_blocks": 3, "width": 64, "num_heads": 4}
    return {"model": model, "pretraining": {"steps": 7}, "seed": seed}


def _left(store, stages):
    store = again(store)
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


def test_stages_of_every_kind_are_told_apart(finished, capsys):
    root, _ = finished
    keys = {kind: sorted(p.name for p in (root / "store" / kind).iterdir())[0] for kind in STAGES}
    assert main(["ls", "--root", str(root)]) == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "seed" in line}
    found = {kind: next(line for key, line in lines.items() if keys[kind].startswith(key)) for kind in STAGES}
    assert "1 blocks of 16" in found["pretrain"]
    assert re.search(r"30 updates, \d+ labels, from [0-9a-f]+", found["finetune"])
    assert re.search(r"of [0-9a-f]+, test/mAP 0\.\d{3}", found["evaluate"])
    assert all("smoke-smoke" in line for line in found.values())
    readers = {"pretrain": "read by finetune", "finetune": "read by evaluate"}
    for kind, key in keys.items():
        assert main(["show", key, "--root", str(root)]) == 0
        printed = capsys.readouterr().out
        assert "its files are what was written" in printed
        assert readers.get(kind, "needed by smoke-smoke") in printed


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


@pytest.mark.parametrize("damage", DAMAGED_FACTS)
def test_a_stage_that_says_something_else_is_told_as_damaged(kept, tmp_path, capsys, damage):
    _, stages = kept
    key = stages[0].key
    DAMAGED_FACTS[damage](tmp_path / "store" / "pretrain" / key)
    said = {}
    for command, status in ((["ls"], 0), (["show", key], 0), (["verify"], 1)):
        assert main([*command, "--root", str(tmp_path)]) == status
        said[command[0]] = capsys.readouterr().out
    assert re.search(rf"{key[:12]} +damaged: stage\.json ", said["ls"])
    assert stages[1].key[:12] in said["ls"]
    assert "damaged: stage.json " in said["show"]
    assert f"pretrain/{key}: stage.json " in said["verify"]
    assert "3 stages verified, 1 damaged" in said["verify"]


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
    store.obtain(stopped, resume)


def test_gc_leaves_what_a_study_has_come_to_need_meanwhile(kept, tmp_path, capsys, monkeypatch):
    store, stages = kept
    entries = type(store).entries

    def come_to_need(*arguments):
        store.refer("another", str(tmp_path), [stages[0].key])
        return entries(*arguments)

    monkeypatch.setattr(type(store), "entries", come_to_need)
    assert main(["gc", "--root", str(tmp_path)]) == 0
    assert f"kept: pretrain/{stages[0].key}, a study has come to need it" in capsys.readouterr().out
    assert _left(store, stages) == [True, True, False]


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        ([], {NEEDED}),
        (["--force", "--older-than", "1.5"], {YOUNG}),
        (["--older-than", "1.5"], {NEEDED, YOUNG}),
        (["--force"], set()),
    ],
)
def test_gc_says_why_more_is_kept_than_there_is_room_for(kept, tmp_path, capsys, options, reasons):
    assert main(["gc", "--max-size", "1B", "--root", str(tmp_path), *options]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert {reason for reason in (NEEDED, YOUNG, BUSY) if reason in last} == reasons


def test_gc_makes_room_with_another_stage_where_a_process_is_at_the_first(tmp_path):
    store = Store(tmp_path / "store")
    other = Stage("pretrain", 1, _settings(0))
    store.obtain(other, write("x" * 1000))
    with at_work(store):
        checkpoint = store.work(STAGE) / "checkpoint.safetensors"
        checkpoint.write_text("half way")
        for path in (checkpoint, checkpoint.parent):
            os.utime(path, (0, 0))
        assert main(["gc", "--max-size", "8B", "--root", str(tmp_path)]) == 0
    assert not store.has(other)
    assert store.has(STAGE)


def test_gc_says_that_a_process_is_at_what_it_has_no_room_for(tmp_path, capsys):
    store = Store(tmp_path / "store")
    with at_work(store):
        (store.work(STAGE) / "checkpoint.safetensors").write_text("half way")
        assert main(["gc", "--max-size", "1B", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("more than 1 B is kept: 8 B: a process is at it\n")


def test_gc_leaves_what_a_process_is_at_and_removes_what_was_given_up(kept, tmp_path, capsys):
    store, _ = kept
    with pytest.raises(RuntimeError):
        store.obtain(Stage("finetune", 1, {}), _fail)
    with at_work(store):
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
    "content",
    ["", "{", "[]", '{"study": "m", "root": "/", "keys": "k"}', '{"study": 1, "root": "/", "keys": []}'],
)
def test_gc_deletes_nothing_while_it_cannot_be_read_what_a_study_needs(kept, tmp_path, capsys, content):
    store, stages = kept
    (path,) = (tmp_path / "store" / "studies").iterdir()
    path.write_text(content)
    for command in (["gc"], ["gc", "--force"], ["gc", "--forget", "mine"], ["ls"]):
        assert main([*command, "--root", str(tmp_path)]) == 2
        assert f"{path}: must say which stages a study needs" in capsys.readouterr().err
    assert _left(store, stages) == [True, True, True]
    store.refer("mine", str(tmp_path), [stages[1].key])
    assert list(store.references()) == [stages[1].key]


@pytest.mark.parametrize(
    ("text", "size"), [("500B", 500), ("1.5 kb", 1500), ("2.MB", 2e6), (".5GB", 5e8), ("3tb", 3e12)]
)
def test_sizes_are_read_in_any_unit(text, size):
    assert _bytes(text) == size
