"""Learning gives way to serving: a lower priority, and pauses while somebody says that the machine is needed."""

from __future__ import annotations

import os
import threading

from holdfast.clock import Clock
from holdfast.learn.training import ShouldPause

CHECK_S = 0.1  # how soon training notices that it may go on; a step of a small model takes a hundredth of that


def lower_priority(nice: int) -> None:
    """Let everything else on the machine go before this process. It can't be undone."""
    os.nice(nice)


class Gate:
    """What training passes before each step.

    Args:
        should_pause: None: nobody ever asks for a pause.
        deadline_s: a time of the clock at which training ends; None: it has no end.
        longest_pause_s: a single pause that is longer ends training as a deadline does.
    """

    def __init__(
        self, clock: Clock, should_pause: ShouldPause | None, *, deadline_s: float | None, longest_pause_s: float
    ) -> None:
        self._clock = clock
        self._should_pause = should_pause
        self._deadline_s = deadline_s
        self._longest_pause_s = longest_pause_s
        self._never = threading.Event()

    def may_go_on(self) -> bool:
        """Wait while a pause is asked for. False: the deadline passed, or the pause was too long."""
        started = self._clock.monotonic_s()
        while not self._is_late():
            if self._should_pause is None or not self._should_pause():
                return True
            if self._clock.monotonic_s() - started >= self._longest_pause_s:
                return False
            self._clock.wait(self._never, CHECK_S)
        return False

    def _is_late(self) -> bool:
        return self._deadline_s is not None and self._clock.monotonic_s() >= self._deadline_s
