"""Batches that are prepared ahead are those that would have been heard, in their order."""

import contextlib
import gc
import time
import weakref

import pytest
import torch

from workbench.training.ahead import Ahead
from workbench.training.pretrain import Pretraining

CPU = torch.device("cpu")


def _number(step):
    return 10 * step


@pytest.mark.parametrize("in_thread", [False, True])
def test_batches_come_in_order(in_thread):
    with Ahead(_number, range(4, 7), CPU, in_thread=in_thread) as ahead:
        assert [ahead.of(step) for step in range(4, 7)] == [40, 50, 60]


def test_batches_are_the_same_ahead(tiny_trial, tiny_splits):
    task = Pretraining(tiny_trial, tiny_splits.pool, CPU)
    with Ahead(task.hear, range(3), CPU, in_thread=True) as ahead:
        for step in range(3):
            ours, alone = ahead.of(step), task.hear(step)
            assert torch.equal(ours.log_mel, alone.log_mel)
            assert all(map(torch.equal, ours.hidden, alone.hidden))


def test_one_is_prepared_while_another_is_used():
    prepared = []

    def hear(step):
        prepared.append(step)
        return step

    with Ahead(hear, range(10), CPU, in_thread=True) as ahead:
        assert ahead.of(0) == 0
        deadline = time.monotonic() + 60
        while 1 not in prepared and time.monotonic() < deadline:
            time.sleep(0.01)
        assert prepared[:2] == [0, 1]
        assert len(prepared) <= 3  # and no more than one of them kept


@pytest.mark.parametrize("in_thread", [False, True])
def test_what_is_heard_from_is_let_go_at_once(in_thread):
    """Not some time later by the garbage collector: it holds a trial's audio, on a GPU its model, too."""

    class Task:
        def hear(self, step):
            return step

    task = Task()
    held = weakref.ref(task)
    gc.disable()
    try:
        with Ahead(task.hear, range(2), CPU, in_thread=in_thread) as ahead:
            ahead.of(0)
        del ahead, task
        deadline = time.monotonic() + 60  # for the thread's last breath
        while held() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held() is None
    finally:
        gc.enable()


def test_an_error_is_raised_where_the_batch_is_asked_for():
    def hear(step):
        raise ValueError("unreadable")

    with (
        Ahead(hear, range(3), CPU, in_thread=True) as ahead,
        pytest.raises(ValueError, match="unreadable"),
    ):
        ahead.of(0)


def test_the_threads_stream_waits_for_what_was_enqueued_before(monkeypatch):
    """A model that was only enqueued to be stacked is otherwise read while it is still garbage."""
    order = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def record_event(self):
            order.append(f"{self.name} records")
            return self.name

        def wait_event(self, event):
            order.append(f"{self.name} waits for {event}")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream("default"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("own"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())

    def hear(step):
        order.append("heard")
        return step

    with Ahead(hear, range(1), torch.device("cuda")) as ahead:
        assert ahead.of(0) == 0
    expected = ["default records", "own waits for default", "heard", "own records", "default waits for own"]
    assert order == expected


def test_no_thread_is_left():
    with Ahead(_number, range(1000), CPU, in_thread=True) as ahead:
        ahead.of(0)
    assert not ahead._thread.is_alive()
