"""Datasets: from a `DataConfig` to clips with labels, in splits that never overlap.

A dataset has four functions, and is entered in `DATASETS` under its config's `kind`:

    fingerprint(config) -> str      what the audio and its labels are, wherever they lie
    load(config, root, seed, report, fingerprint) -> Splits
    check(config, root, report)     removes what was made here and is damaged, so that `load` makes it again
    extent(config, root, fingerprint) -> Extent     how much there is, before anything is prepared

Those of recorded files share them (`recordings`), and say how their tables are read and what is tested on.
Audio for pre-training alone, without labels or splits, is a `pool`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from workbench.data import (
    audioset,
    corpus,
    dcase2019,
    esc50,
    folder,
    fsdkaggle2019,
    kinetics700,
    magnatagatune,
    pool,
)
from workbench.data.clips import Extent, Splits
from workbench.data.pool import Pool
from workbench.data.recordings import Layout
from workbench.data_config import DataConfig, PoolData


class Dataset(Protocol):
    """What a dataset provides."""

    def fingerprint(self, config: Any) -> str:
        """SHA-256 of what the audio and the labels are."""

    def load(
        self, config: Any, root: Path, seed: int, report: Callable[[str], None], fingerprint: str
    ) -> Splits:
        """The clips; prepared below `root` first if they are not there yet, telling `report`."""

    def check(self, config: Any, root: Path, report: Callable[[str], None]) -> None:
        """Remove what `load` makes again if it is not as it was written, telling `report`."""

    def extent(self, config: Any, root: Path, fingerprint: str) -> Extent:
        """How much there is of everything, and how much of it is not yet prepared below `root`."""


DATASETS: dict[str, Dataset] = {
    "corpus": corpus,
    "esc50": esc50.DATASET,
    "audioset": audioset.DATASET,
    "folder": folder.DATASET,
    "fsdkaggle2019": fsdkaggle2019.DATASET,
    "dcase2019": dcase2019.DATASET,
    "magnatagatune": magnatagatune.DATASET,
    "kinetics700": kinetics700.DATASET,
}
LAYOUTS: dict[str, Layout] = {  # of recordings, for `prepare`
    **esc50.LAYOUTS,
    **audioset.LAYOUTS,
    **folder.LAYOUTS,
    **fsdkaggle2019.LAYOUTS,
    **dcase2019.LAYOUTS,
    **magnatagatune.LAYOUTS,
    **kinetics700.LAYOUTS,
    **pool.LAYOUTS,
}


def fingerprint(config: DataConfig | PoolData) -> str:
    """What the data are, as SHA-256. Raises DataError when they are not there to be asked."""
    if isinstance(config, PoolData):
        return pool.fingerprint(config)
    return DATASETS[config.kind].fingerprint(config)


def load_splits(
    config: DataConfig,
    root: Path,
    seed: int,
    report: Callable[[str], None] = print,
    fingerprint: str | None = None,
) -> Splits:
    """The clips of `config`, prepared once below `root`; `seed` draws the labelled subset.

    Whoever knows the data's fingerprint saves the time to find it out. Raises DataError.
    """
    known = fingerprint or DATASETS[config.kind].fingerprint(config)
    return DATASETS[config.kind].load(config, root, seed, report, known)


def load_pool(
    config: PoolData, root: Path, report: Callable[[str], None] = print, fingerprint: str | None = None
) -> Pool:
    """The clips of a pool of its own, prepared once below `root`. Raises DataError."""
    return pool.load(config, root, report, fingerprint or pool.fingerprint(config))


def make_ready(
    data: DataConfig,
    pool: PoolData | None,
    root: Path,
    seed: int,
    report: Callable[[str], None],
    fingerprints: tuple[str, str | None],
) -> set[str]:
    """Make or decode the audio of a trial, once: who then trains only opens it. The files that are left out.

    What is there of the embedded corpus is checked first; who trains does not check it again. `report` is
    told of recordings in the pool that sound as clips do which training is not to hear.
    """
    DATASETS[data.kind].check(data, root, report)
    splits = load_splits(data, root, seed, report, fingerprints[0])
    if pool is None:
        return set(splits.left_out)
    own = load_pool(pool, root, report, fingerprints[1])
    if shared := own.num_shared(splits):
        report(
            f"{pool.root}: {shared} recordings of the pool sound the same as validation or test clips of "
            f"{data.kind}, and pre-training will hear them"
        )
    return {*splits.left_out, *own.left_out}


def extent(config: DataConfig | PoolData, root: Path, fingerprint: str) -> Extent:
    """How much there is. Raises DataError."""
    if isinstance(config, PoolData):
        return pool.extent(config, root, fingerprint)
    return DATASETS[config.kind].extent(config, root, fingerprint)
