"""Processes that this one starts for its own work, and that end when it does."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import torch

PR_SET_PDEATHSIG = 1  # of Linux' prctl


@contextlib.contextmanager
def spawned_pool(workers: int, threads: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Of new interpreters: a forked child would inherit the locks of torch's threads.

    `threads` is how many torch uses in each; without it, one for each core in every process. An exception in
    the block, Ctrl-C too, kills them in the midst of their work.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(threads,))
    try:
        with _interrupts_blocked():  # as in the children, for ever: Ctrl-C is this process's, which ends them
            for _ in range(workers):
                pool.submit(os.getpid)  # each starts one
        yield pool
    except BaseException:
        for process in list(pool._processes.values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
