"""What tests of the store have in common: stages that cost nothing, and other processes at them."""

import contextlib
import threading

from workbench.store import Stage, Store
from workbench.store.remote import RemoteStore

STAGE = Stage("pretrain", 1, {"steps": 3})


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
