"""The machine's clock, but the wall clock can be set ahead: for tests with real TLS and real threads."""

from __future__ import annotations

from holdfast.clock import SystemClock


class ShiftedClock(SystemClock):
    """Implements `holdfast.clock.Clock`; durations and waiting are real."""

    def __init__(self) -> None:
        self._shift_ns = 0

    def utc_ns(self) -> int:
        return super().utc_ns() + self._shift_ns

    def advance(self, seconds: float) -> None:
        """Set the wall clock ahead."""
        self._shift_ns += round(seconds * 1e9)
