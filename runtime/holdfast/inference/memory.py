"""Gives the memory of models that are gone back to the system; without this, much of it stays with the process.

Call it after a model was unloaded or replaced, off the serving loop's thread: it takes milliseconds. Nothing that is
still in use is touched. On a system without glibc it only collects what Python holds.
"""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8  # mallopt(3)


def share_heap() -> None:
    """Let all threads allocate from one heap. Call it before the first thread is started.

    Otherwise the C library gives every thread a heap of its own, which costs 0.9 MiB with a single model. Large
    tensors, and what ONNX Runtime's own arena holds, are in none of them.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_M_ARENA_MAX, 1)


def settle() -> None:
    """Let the collector pass over what exists now: the program itself. Call it before models are loaded.

    Otherwise every full collection, also that of `give_back`, walks through 200,000 objects of imported modules and
    keeps every request waiting for 15 ms.
    """
    gc.freeze()


def give_back() -> None:
    """Collect dead sessions, then let the C library return its free pages (malloc_trim(3))."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
