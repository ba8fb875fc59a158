"""Stages by content: what was trained before is found, not trained again.

A stage's key is a hash of all that can change its result: its settings, its version, its data's
fingerprint and its parents' keys. A finished stage is the folder `<kind>/<key>` of a store, with
`stage.json` (settings, parents, seconds, checksums of itself too) beside its files.
"""

from collections.abc import Callable

from workbench.store.local import Build, Entry, Store
from workbench.store.stage import CHECKPOINT, FACTS, DamagedFacts, Stage, StageBusy

__all__ = [
    "CHECKPOINT",
    "FACTS",
    "Build",
    "DamagedFacts",
    "Entry",
    "Stage",
    "StageBusy",
    "Store",
    "open_store",
]


def open_store(location: str, report: Callable[[str], None] = print) -> Store:
    """The store in a folder that every process sees, or at an fsspec URL such as `s3://bucket/stages`."""
    if "://" in location and not location.startswith("file://"):
        from workbench.store.remote import RemoteStore

        return RemoteStore(location, report)
    return Store(location.removeprefix("file://"), report)
