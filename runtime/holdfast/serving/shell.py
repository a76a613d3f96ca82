"""The threads of the scheduler: one worker per slow model, and one alarm clock for deadlines.

Why own threads and not an executor: an executor is joined when the process ends, and a run that hangs would keep the
process alive. These are daemons and go by themselves when they have had nothing to do for a while.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol

from holdfast.clock import Clock

IDLE_S = 60.0  # a worker that waits costs a stack; starting one costs 0.1 ms
FOREVER_S = 3600.0  # every wait has an end


class Worker(Protocol):
    """Runs jobs one after the other, off the caller's thread."""

    def start(self, job: Callable[[], None]) -> None:
        """Run `job` soon. Returns at once."""


class Alarm(Protocol):
    """Rings at a time."""

    def at(self, when_s: float) -> None:
        """Ring at `when_s` of the monotonic clock, or before: an earlier time that was asked for stands."""

    def close(self) -> None:
        """Never ring again."""


class Shell(Protocol):
    """Makes workers and alarms."""

    def worker(self, name: str) -> Worker: ...

    def alarm(self, ring: Callable[[], None]) -> Alarm: ...


class ThreadShell:
    """The real ones."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def worker(self, name: str) -> Worker:
        return ThreadWorker(name)

    def alarm(self, ring: Callable[[], None]) -> Alarm:
        return ThreadAlarm(self._clock, ring)


class ThreadWorker:
    """One thread, made when there is a job and gone when there was none for IDLE_S."""

    def __init__(self, name: str, idle_s: float = IDLE_S) -> None:
        self._name, self._idle_s = f"model-{name}"[:64], idle_s
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_alive = False

    def start(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)
        with self._lock:
            if not self._is_alive:
                self._is_alive = True
                threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._idle_s)
            except queue.Empty:
                with self._lock:
                    if self._jobs.empty():  # a job put since then found this thread alive
                        self._is_alive = False
                        return
                continue
            job()
            del job  # it holds a model, which may be unloaded while this thread waits


class ThreadAlarm:
    """One thread, made at the first deadline."""

    def __init__(self, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock, self._ring = clock, ring
        self._lock = threading.Lock()
        self._earlier = threading.Event()
        self._when_s: float | None = None
        self._is_alive = self._is_closed = False

    def at(self, when_s: float) -> None:
        with self._lock:
            if self._is_closed or (self._when_s is not None and self._when_s <= when_s):
                return
            self._when_s = when_s
            self._earlier.set()
            if not self._is_alive:
                self._is_alive = True
                threading.Thread(target=self._watch, name="scheduler-alarm", daemon=True).start()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._earlier.set()

    def _watch(self) -> None:
        while True:
            with self._lock:
                self._earlier.clear()
                if self._is_closed:
                    return
                left_s = FOREVER_S if self._when_s is None else self._when_s - self._clock.monotonic_s()
                is_due = left_s <= 0
                if is_due:
                    self._when_s = None
            if is_due:
                self._ring()
            else:
                self._clock.wait(self._earlier, min(left_s, FOREVER_S))
