"""When what was read is run: with what else came in this turn of the loop, or at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from tests.fakes.clock import FakeClock

from holdfast.serving.native.budget import Gate
from holdfast.serving.native.codec import InferCodec
from holdfast.serving.native.lane import Lane
from holdfast.serving.native.tick import ALONE_TURNS, Tick


class Loop:
    """Calls back when it is told to."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def turn(self) -> None:
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()


class Connection:
    """Reads, and counts what it writes."""

    def __init__(self, tick: Tick) -> None:
        self._tick = tick
        self.flushed = 0

    def flush(self) -> None:
        self.flushed += 1

    def read(self) -> None:
        is_alone = self._tick.begin_read(self)
        self._tick.touch(self)
        if is_alone:
            self._tick.end_read()


def ticking() -> tuple[Loop, Tick]:
    loop = Loop()
    lane = Lane(InferCodec(), cast(Any, None), FakeClock(), 1)
    return loop, Tick(cast(asyncio.AbstractEventLoop, loop), lane, Gate(1, "requests"))


def alone(loop: Loop, tick: Tick) -> Connection:
    """A connection that had enough turns to itself."""
    connection = Connection(tick)
    for _ in range(ALONE_TURNS):
        connection.read()
        loop.turn()
    assert connection.flushed == ALONE_TURNS
    return connection


def test_connection_that_had_the_last_turns_to_itself_is_answered_without_another_turn() -> None:
    loop, tick = ticking()
    connection = alone(loop, tick)

    connection.read()

    assert connection.flushed == ALONE_TURNS + 1
    assert loop.callbacks == []


def test_new_connection_waits_for_others_of_its_turn() -> None:
    loop, tick = ticking()
    first, second = Connection(tick), Connection(tick)

    first.read()
    second.read()

    assert (first.flushed, second.flushed, len(loop.callbacks)) == (0, 0, 1)
    loop.turn()
    assert (first.flushed, second.flushed) == (1, 1)


def test_connection_is_no_longer_alone_once_another_one_had_a_turn() -> None:
    loop, tick = ticking()
    first = alone(loop, tick)
    second = Connection(tick)

    second.read()
    loop.turn()
    before = first.flushed
    first.read()

    assert first.flushed == before
    loop.turn()
    assert first.flushed == before + 1


def test_connection_waits_when_somebody_else_came_first_in_its_turn() -> None:
    loop, tick = ticking()
    first = alone(loop, tick)
    second = Connection(tick)
    before = first.flushed

    second.read()
    first.read()

    assert first.flushed == before
    loop.turn()
    assert (first.flushed, second.flushed) == (before + 1, 1)


def test_who_touches_between_begin_and_end_of_a_read_is_flushed_with_it() -> None:
    loop, tick = ticking()
    first = alone(loop, tick)
    second = Connection(tick)

    assert tick.begin_read(first)
    tick.touch(second)
    tick.end_read()

    assert second.flushed == 1
    assert loop.callbacks == []


def test_connection_that_is_gone_is_not_kept() -> None:
    loop, tick = ticking()
    connection = alone(loop, tick)

    tick.forget(connection)

    assert not tick.begin_read(connection)


def test_what_a_run_elsewhere_answered_leaves_in_the_turn_in_which_it_is_told() -> None:
    loop, tick = ticking()
    connection = Connection(tick)

    tick.post_run(lambda: tick.touch(connection))
    loop.turn()

    assert connection.flushed == 1
    assert loop.callbacks == []


def test_run_that_ends_while_others_wait_for_the_next_turn_leaves_with_them() -> None:
    loop, tick = ticking()
    first, second = Connection(tick), Connection(tick)

    tick.post_run(lambda: tick.touch(second))
    first.read()
    loop.turn()

    assert (first.flushed, second.flushed) == (1, 1)
