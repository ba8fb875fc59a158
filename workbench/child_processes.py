"""Processes that this one starts for its own work, and that end when it does."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor

import torch

PR_SET_PDEATHSIG = 1  # of Linux' prctl


def spawned_pool(workers: int, threads: int | None = None) -> ProcessPoolExecutor:
    """Of new interpreters: a forked child would inherit the locks of torch's threads.

    `threads` is how many torch uses in each; without it, one for each core in every process.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(threads,))


def _begin(threads: int | None) -> None:
    die_with_parent()
    if threads is not None:
        torch.set_num_threads(threads)


def die_with_parent() -> None:
    """Else a worker would wait for ever for the jobs of a parent that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():  # it died before it was asked for
        os._exit(1)
