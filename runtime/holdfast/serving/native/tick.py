"""What arrives in one turn of the loop goes to the scheduler together, and leaves each connection in one write.

Rules: everything here happens on the loop's thread; `post` and `post_run` alone may be called from others. A
connection that had the last turns to itself waits for nobody: what it sent is answered at once when it was read; and so
is what a run on another thread answered. The next turn of the loop, where all others are answered, costs a look at
every socket before it begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from holdfast.errors import AbandonedError
from holdfast.serving.native.budget import Gate
from holdfast.serving.native.lane import Lane
from holdfast.serving.protocols import Pending, Scheduler

ALONE_TURNS = 8  # in succession, until a connection counts as the only one that is busy


class Flushable(Protocol):
    """A connection that has something to send."""

    def flush(self) -> None:
        """Write it."""


class Tick:
    """Collects requests and touched connections; one callback of the loop handles them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lane: Lane, in_flight: Gate) -> None:
        self._loop = loop
        self._lane = lane
        self._in_flight = in_flight
        self._scheduler: Scheduler | None = None
        self._pending: list[Pending] = []
        self._touched: dict[Flushable, None] = {}
        self._is_set = False
        self._last: Flushable | None = None  # had the last turns to itself
        self._alone_turns = 0

    def serve_with(self, scheduler: Scheduler) -> None:
        """The scheduler comes after us, because it wants `post`."""
        self._scheduler = scheduler
        self._lane.serve_with(scheduler)

    def add(self, pending: Pending) -> None:
        """A request for the scheduler."""
        self._pending.append(pending)
        if not self._is_set:
            self._set()

    def abandon(self, pending: Pending) -> None:
        """Nobody waits for this request any more."""
        if pending in self._pending:
            self._pending.remove(pending)
            pending.done(AbandonedError("the client left before its answer"))
        elif self._scheduler is not None:
            self._scheduler.abandon([pending])

    def touch(self, connection: Flushable) -> None:
        """A connection with something to send."""
        self._touched[connection] = None
        if not self._is_set:
            self._set()

    def begin_read(self, connection: Flushable | None) -> bool:
        """Octets of a connection are about to be read. Whether `end_read` must follow, which runs what they ask for."""
        if connection is None or connection is not self._last or self._is_set or self._alone_turns < ALONE_TURNS:
            return False
        self._is_set = True  # by whoever calls `end_read`
        return True

    def end_read(self) -> None:
        """Run what was read."""
        self._run()

    def forget(self, connection: Flushable | None) -> None:
        """A connection is gone."""
        if connection is self._last:
            self._last = None

    def post(self, callback: Callable[[], None]) -> None:
        """Call back on the loop's thread, soon. From any thread; nothing happens once the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def post_run(self, callback: Callable[[], None]) -> None:
        """As `post`, for the end of a run: what it leads to is done at once, because runs rarely end together."""
        self.post(partial(self._finish, callback))

    def _finish(self, callback: Callable[[], None]) -> None:
        if self._is_set:
            callback()
            return
        self._is_set = True
        try:
            callback()
        finally:
            self._run()

    def _set(self) -> None:
        self._is_set = True
        self._loop.call_soon(self._run)

    def _run(self) -> None:
        try:
            if self._lane.calls or self._lane.large:
                self._lane.run(self._in_flight.count)
            batch, self._pending = self._pending, []
            if batch:
                assert self._scheduler is not None
                self._scheduler.submit(batch)
            touched, self._touched = self._touched, {}
            for connection in touched:
                connection.flush()
            if len(touched) != 1:
                self._last = None
            elif connection is self._last:
                self._alone_turns += 1
            else:
                self._last, self._alone_turns = connection, 1
        finally:
            self._is_set = False
            if self._pending or self._touched:
                self._set()
