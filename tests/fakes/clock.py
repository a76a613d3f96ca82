"""A clock that moves only when told to."""

from __future__ import annotations

import threading


class FakeClock:
    """Implements `holdfast.clock.Clock`. `wait` jumps ahead at once instead of sleeping."""

    def __init__(self, utc_ns: int = 1_790_000_000_000_000_000) -> None:
        self._utc_ns = utc_ns
        self._monotonic_s = 1_000.0

    def utc_ns(self) -> int:
        return self._utc_ns

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        if not event.is_set():
            self.advance(timeout_s)
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        self._utc_ns += round(seconds * 1e9)
        self._monotonic_s += seconds

    def set_wall_clock(self, utc_ns: int) -> None:
        """Set the wall clock, as an operator or NTP would; the monotonic clock goes on."""
        self._utc_ns = utc_ns
