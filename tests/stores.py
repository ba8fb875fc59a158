"""What tests of the store have in common: stages that cost nothing, and other processes at them."""

import contextlib
import json
import threading

from workbench.store import FACTS, Stage, Store
from workbench.store.remote import RemoteStore
from workbench.store.stage import CHECKSUM, with_checksum

STAGE = Stage("pretrain", 1, {"steps": 3})


def change_facts(folder, change, *, write=lambda facts: facts):
    """Have `change` change what `stage.json` says; its checksum stays as it was."""
    facts = json.loads((folder / FACTS).read_text())
    change(facts)
    (folder / FACTS).write_text(json.dumps(write(facts)))


def _become_another(folder):
    """With a checksum that is right."""
    change_facts(folder, lambda facts: facts["settings"].update(steps=4), write=with_checksum)


DAMAGED_FACTS = {
    "half a file": lambda folder: (folder / FACTS).write_text("{"),
    "nothing": lambda folder: (folder / FACTS).write_text("{}"),
    "no checksums": lambda folder: (folder / FACTS).write_text('{"sha256": []}'),
    "a list": lambda folder: (folder / FACTS).write_text("[1]"),
    "text for a number": lambda folder: change_facts(folder, lambda facts: facts.update(seconds="long")),
    "metric": lambda folder: change_facts(folder, lambda facts: facts["metrics"].update(loss=0.5)),
    "setting": lambda folder: change_facts(folder, lambda facts: facts["settings"].update(steps=4)),
    "parent": lambda folder: change_facts(folder, lambda facts: facts["parents"].append("0" * 64)),
    "checksum": lambda folder: change_facts(folder, lambda facts: facts.pop(CHECKSUM)),
    "another stage": _become_another,
}


def again(store, name="again"):
    """The same store, from another process or machine."""
    if isinstance(store, RemoteStore):
        return RemoteStore(store.location, cache=store.root.with_name(name))
    return Store(store.root)


def write(text):
    def build(folder):
        (folder / "weights").write_text(text)
        return {"metrics": {"loss": 1.0}}

    return build


def never(folder):
    raise AssertionError("built again")


def half_way(folder):
    (folder / "checkpoint.safetensors").write_text("half way")
    (folder / "weights.1.tmp").write_text("half writ")
    return write("a")(folder)


def resume(folder):
    assert (folder / "checkpoint.safetensors").read_text() == "half way"
    return write("a")(folder)


@contextlib.contextmanager
def at_work(store):
    """Another thread is at the stage; to the kernel, a lock on another open file is another process's."""
    begun, end = threading.Event(), threading.Event()

    def build(folder):
        begun.set()
        end.wait(30)
        return {"metrics": {}}

    thread = threading.Thread(target=again(store).obtain, args=(STAGE, build))
    thread.start()
    begun.wait(30)
    try:
        yield
    finally:
        end.set()
        thread.join(30)
