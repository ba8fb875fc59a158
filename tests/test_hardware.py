"""Memory that is free is given back, or serves the next thread."""

import subprocess
import sys

import torch

from workbench.hardware import forget_peak, resident_bytes

MEGABYTE = 1 << 20
THREADS, PIECES, PIECE_BYTES = 8, 400, 100_000  # pieces that are too small to be given back one by one


def _growth(first):
    """Bytes by which a process grows, after `first`, while its threads in turn take 40 MB and free them."""
    code = f"""
import threading, torch
from workbench.hardware import one_memory_arena, resident_bytes
{first}
def work(begin, end):
    begin.wait()
    pieces = [torch.ones({PIECE_BYTES}, dtype=torch.uint8) for _ in range({PIECES})]
    keep.append(torch.ones(10_000, dtype=torch.uint8))  # what keeps a heap from being cut off at its end
    del pieces
    end.set()
keep = []
events = [(threading.Event(), threading.Event()) for _ in range({THREADS})]
for begin, end in events:  # all there at once, as Ray's old and new threads are
    threading.Thread(target=work, args=(begin, end)).start()
before = resident_bytes()
for begin, end in events:
    begin.set(); end.wait()
print(resident_bytes() - before)
"""
    return int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def test_what_one_thread_freed_serves_the_next():
    once = PIECES * PIECE_BYTES
    assert _growth("") > 4 * once  # else there is nothing to mend here
    assert _growth("one_memory_arena()") < 2 * once


def test_the_peak_is_of_what_came_after():
    large = torch.ones(300 * MEGABYTE, dtype=torch.uint8)
    del large
    at_rest = forget_peak()
    assert resident_bytes(peak=True) - at_rest < 20 * MEGABYTE
    small = torch.ones(100 * MEGABYTE, dtype=torch.uint8)
    assert 90 * MEGABYTE < resident_bytes(peak=True) - at_rest < 130 * MEGABYTE
    assert len(small)
