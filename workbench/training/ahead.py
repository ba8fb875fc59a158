"""What the next updates hear, prepared while a GPU computes the last one.

A thread reads, draws and augments one batch ahead, on a stream of its own from pinned memory: copies and the
front end run beside the update, and the device does not wait for the processor.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

HeardT = TypeVar("HeardT")


class Ahead(Generic[HeardT]):
    """The batches of `updates`, in their order; a context, which ends the thread."""

    def __init__(
        self,
        hear: Callable[[int], HeardT],
        updates: range,
        device: torch.device,
        *,
        in_thread: bool | None = None,
    ) -> None:
        """`in_thread=None`: on a GPU; a processor has nothing to wait for."""
        self._hear, self._updates, self._device = hear, updates, device
        if in_thread is None:
            in_thread = device.type == "cuda"
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._ended = threading.Event()
        self._before: torch.cuda.Event | None = None
        self._thread = threading.Thread(target=self._prepare, daemon=True) if in_thread else None

    def __enter__(self) -> Ahead[HeardT]:
        if self._thread is not None:
            if self._device.type == "cuda":  # what was enqueued so far: models, their front ends
                self._before = torch.cuda.current_stream(self._device).record_event()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        while self._thread is not None and self._thread.is_alive():
            with contextlib.suppress(queue.Empty):  # the thread may wait for a place
                self._ready.get(timeout=0.01)

    def of(self, step: int) -> HeardT:
        """Of one update; updates must be asked for in their order."""
        if self._thread is None:
            return self._hear(step)
        heard, event = self._ready.get()
        if isinstance(heard, BaseException):
            raise heard
        if event is not None:
            current = torch.cuda.current_stream()
            current.wait_event(event)
            for leaf in tree_leaves(heard):
                if isinstance(leaf, Tensor):
                    leaf.record_stream(current)  # else its memory would be given away too early
        return cast(HeardT, heard)

    def _prepare(self) -> None:
        on_gpu = self._device.type == "cuda"
        stream = torch.cuda.Stream(self._device) if on_gpu else None
        if stream is not None and self._before is not None:
            stream.wait_event(self._before)  # streams do not wait for one another by themselves
        try:
            with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
                for step in self._updates:
                    heard = self._hear(step)
                    if not self._put(heard, stream.record_event() if stream is not None else None):
                        return
        except BaseException as error:  # is raised where the batch is asked for
            self._put(error, None)

    def _put(self, item: Any, event: Any) -> bool:
        """Whether anybody still wants it."""
        while not self._ended.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put((item, event), timeout=0.1)
                return True
        return False
