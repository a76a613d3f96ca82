"""Gives way to whoever is served: for what is done beside requests, like the trial and the loading of a model.

Rules: a lower priority is for good; without privileges Linux lets nobody raise it again. So a thread that is to give
way is one of its own, and what it starts must end with it: threads and processes inherit its priority.

Why more than nice(2): Linux shares the processor among sessions first (autogroup, sched(7)). A process that leads a
session of its own gets as much as the whole server, however nice it is, until its session is nice too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

NICE = 10  # a tenth of what others get where the processor is short, so that the work ends all the same
THREAD_NICE = 5  # a third: it holds the interpreter now and then, and requests wait for it then
SLICE_NS = 100_000_000  # the longest there is
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # asm/unistd.h; the C library has it since 2.41 only


def lower_process(pid: int) -> None:
    """Lower the priority of a process and of the session it leads. Does nothing if it is gone."""
    with contextlib.suppress(ProcessLookupError):
        _lower(pid, NICE)
    # not every kernel has sessions with priorities; and without privileges it changes one of them in 0.1 s
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICE), encoding="ascii")


def in_background(work: Callable[[], Result]) -> Result:
    """Do work on a thread of low priority; waits for it, and raises what it raises."""
    with ThreadPoolExecutor(1, "background", initializer=_lower_this_thread) as thread:
        return thread.submit(work).result()


def _lower_this_thread() -> None:
    _lower(threading.get_native_id(), THREAD_NICE)


def _lower(number: int, nice: int) -> None:
    """Lower the priority of a thread, or of a process's first thread; never raise it, which is not allowed."""
    if os.getpriority(os.PRIO_PROCESS, number) < nice:
        os.setpriority(os.PRIO_PROCESS, number, nice)
    _take_long_slices(number)


def _take_long_slices(number: int) -> None:
    """Let whoever wakes up go first at once (sched_setattr(2)). Since Linux 6.12; before, it changes nothing.

    Linux lets a thread finish its slice, however nice it is, unless one comes whose slices are shorter.
    """
    call = _SCHED_SETATTR.get(platform.machine())
    if call is None:
        return
    nice = os.getpriority(os.PRIO_PROCESS, number)
    wanted = struct.pack("=IIQiIQQQ", 48, 0, 0, nice, 0, SLICE_NS, 0, 0)  # struct sched_attr of SCHED_OTHER, first form
    ctypes.CDLL(None).syscall(call, number, wanted, 0)
