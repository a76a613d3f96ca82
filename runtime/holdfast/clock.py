"""The only place that asks the machine what time it is.

Everything that needs time is handed a `Clock`, so that tests can jump through hours without waiting.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Wall-clock time for records, monotonic time for durations, and waiting."""

    def utc_ns(self) -> int:
        """Nanoseconds since 1970-01-01T00:00:00Z; may jump when the machine's clock is set."""

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start; never goes back. For durations and deadlines only."""

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until `event` is set, `timeout_s` at most. Returns whether it is set."""


class SystemClock:
    """The machine's own clocks."""

    def utc_ns(self) -> int:
        return time.time_ns()

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.wait(timeout_s)


class ThreadCpuClock(SystemClock):
    """How long work takes by itself: `monotonic_s` is CPU time of the thread that asks; the rest is the machine's.

    What the thread waits for does not count: neither others who have the processor nor a disk.
    """

    def monotonic_s(self) -> float:
        return time.thread_time()
