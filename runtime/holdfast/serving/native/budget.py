"""What all connections of a server share: places for requests, and memory for messages above a stream's window.

Rules: first come, first served; what is reserved is given back exactly once; a reservation that could never be kept is
cut to the whole. Memory of messages is used again, and goes back to the system when none came for a while.
Why not larger windows instead: a window is a promise to every stream of every connection at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from holdfast.errors import OverloadedError
from holdfast.serving.buffers import Buffers


class Gate:
    """Counts what is under way, against a bound. On the loop's thread."""

    __slots__ = ("_what", "count", "limit")

    def __init__(self, limit: int, what: str) -> None:
        self.count = 0
        self.limit = limit
        self._what = what

    def enter(self) -> None:
        """One more.

        Raises:
            OverloadedError: it would be too many.
        """
        if self.count >= self.limit:
            raise OverloadedError(f"too many {self._what} at once; try again in a moment")
        self.count += 1

    def leave(self) -> None:
        self.count -= 1


class Reservation:
    """A part of the budget, wanted or held."""

    __slots__ = ("_budget", "_granted", "is_held", "size")

    def __init__(self, budget: Budget, size: int, granted: Callable[[], None]) -> None:
        self._budget = budget
        self._granted = granted
        self.size = size
        self.is_held = False

    def release(self) -> None:
        """Give it back, or stop waiting for it. A second time does nothing."""
        self._budget._release(self)

    def _hold(self) -> None:
        self.is_held = True
        self._granted()


class Budget:
    """Octets. On the loop's thread only. `buffers`: where to take them from, once they are granted."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.left = size
        self.buffers = Buffers()
        self._waiting: deque[Reservation] = deque()

    def reserve(self, size: int, granted: Callable[[], None]) -> Reservation:
        """Ask for `size` octets; `granted` is called when they are there, maybe at once."""
        reservation = Reservation(self, min(size, self._size), granted)
        self._waiting.append(reservation)
        self._serve()
        return reservation

    def _serve(self) -> None:
        while self._waiting and self._waiting[0].size <= self.left:
            reservation = self._waiting.popleft()
            self.left -= reservation.size
            reservation._hold()

    def _release(self, reservation: Reservation) -> None:
        if reservation.is_held:
            reservation.is_held = False
            self.left += reservation.size
            reservation.size = 0
        elif reservation in self._waiting:
            self._waiting.remove(reservation)
        self._serve()
