"""Memory for large tensors that is used again and again: octets that the kernel has given us before, and aligned.

Rules: octets are handed out again only when nothing refers to them any more: no array over them, no view of it, no tap
that keeps one. What is kept is bounded, in octets and in number. They hold whatever stood there before: who takes them
writes all of them, or shows nothing. Thread-safe.

Why: fresh memory of this size costs a page fault for every 4 KiB, more than the copy into it. Why references are
counted: Python does so anyway, and "given back" is then nobody's duty, so that nobody can forget it.
"""

from __future__ import annotations

import sys
import threading

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # octets: a cache line, and more than any instruction asks for
MAX_KEPT_BYTES = 16 * 1024**2  # of a process: a few camera images; larger tensors cost more than their memory anyway
MAX_KEPT = 16  # looked through one by one


class _Octets:
    """An allocation, and where it begins. Whatever is made of it refers to `array`."""

    __slots__ = ("address", "array")

    def __init__(self, size: int) -> None:
        self.array: NDArray[np.uint8] = np.empty(size, dtype=np.uint8)
        self.address: int = self.array.ctypes.data  # asking costs as much as all the rest of a `take`


def _references(octets: _Octets) -> int:
    return sys.getrefcount(octets.array)


_UNUSED = _references(_Octets(0))  # what an allocation and the question itself count


class Buffers:
    """Takes octets from what it keeps, else from the system."""

    def __init__(self, max_kept_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_kept_bytes = max_kept_bytes
        self._kept: list[_Octets] = []
        self._is_used = False
        self._lock = threading.Lock()

    def take(self, size: int, at: int = 0) -> memoryview:
        """`size` octets of any content, of which number `at` stands at a multiple of `ALIGNMENT`."""
        with self._lock:
            self._is_used = True
            octets = self._unused(size + ALIGNMENT)
            start = -(octets.address + at) % ALIGNMENT
            return octets.array.data[start : start + size]

    def forget(self) -> None:
        """Keep nothing: what is in use goes back to the system when it no longer is."""
        with self._lock:
            self._kept.clear()

    def forget_if_idle(self) -> None:
        """As `forget`, if nothing was taken since the last time this was called."""
        with self._lock:
            if not self._is_used:
                self._kept.clear()
            self._is_used = False

    @property
    def kept_bytes(self) -> int:
        """In use or not."""
        with self._lock:
            return sum(octets.array.nbytes for octets in self._kept)

    def _unused(self, size: int) -> _Octets:
        for octets in self._kept:
            # twice as large at most: a small tensor must not sit on the memory of a large one
            if size <= octets.array.nbytes <= 2 * size and _references(octets) == _UNUSED:
                return octets
        octets = _Octets(size)
        if size <= self._max_kept_bytes:
            self._keep(octets)
        return octets

    def _keep(self, octets: _Octets) -> None:
        """Keep octets; the oldest of those that are not in use make room for them."""
        left = self._max_kept_bytes - octets.array.nbytes - sum(each.array.nbytes for each in self._kept)
        for place in reversed(range(len(self._kept))):
            if left >= 0 and len(self._kept) < MAX_KEPT:
                break
            if _references(self._kept[place]) == _UNUSED:
                left += self._kept.pop(place).array.nbytes
        if left >= 0 and len(self._kept) < MAX_KEPT:
            self._kept.insert(0, octets)
