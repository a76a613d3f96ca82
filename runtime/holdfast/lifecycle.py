"""The tasks of a process: start, ready, stop; the first failure stops all; signals and deadlines.

A task is a function that runs in a thread of its own until the `Stop` it was handed is set. The first task that
raises stops all the others, and its error is raised by `run`. The first SIGTERM or SIGINT asks all to stop; a
second one ends the process at once. Handlers are restored on the way out.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from holdfast.clock import Clock, SystemClock

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 20.0  # tasks that have not ended by then are named in the log and left to die with the process


class Stop:
    """Asks tasks to end. Thread-safe; once set it stays set."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._event = threading.Event()
        self._clock = clock or SystemClock()

    def set(self) -> None:
        self._event.set()

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Sleep `timeout_s` at most; returns True as soon as a stop was asked for."""
        return self._clock.wait(self._event, timeout_s)


@dataclass(frozen=True, slots=True)
class Task:
    """A named function that runs until `Stop` is set; returning early is allowed, raising stops all tasks."""

    name: str
    run: Callable[[Stop], None]


def run(tasks: Sequence[Task], stop: Stop, *, stop_timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Run all tasks, each in a thread, until `stop` is set or one raises; then stop the rest and wait for them.

    Raises: the first error that a task raised.
    """
    errors: list[BaseException] = []

    def guarded(task: Task) -> None:
        try:
            task.run(stop)
        except BaseException as error:  # the task runner's door: the first failure stops all
            logger.exception("task failed", extra={"task": task.name})
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=guarded, args=(task,), name=task.name, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    while not stop.wait(0.5) and any(thread.is_alive() for thread in threads):
        pass
    stop.set()
    clock = SystemClock()
    deadline_s = clock.monotonic_s() + stop_timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline_s - clock.monotonic_s()))
        if thread.is_alive():
            logger.warning("task did not stop in time", extra={"task": thread.name})
    if errors:
        raise errors[0]


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Set `stop` on the first SIGTERM or SIGINT; end the process at once on the second. Main thread only."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.is_set:
            os._exit(128 + number)
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
