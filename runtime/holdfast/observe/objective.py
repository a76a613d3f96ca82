"""Whether requests are answered as fast as their operator wants: the p99 of the last seconds beside its objective.

It is what learning on the same machine yields to. Rules: told of every answer on the thread that gives it, it appends
its numbers; judged twice a second elsewhere. A handful of requests proves nothing: below MIN_REQUESTS nobody is asked
to yield; errors are not latencies and are left out.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from holdfast.lifecycle import Stop

LOOK_S = 0.5
LOOKS = 10  # of a window: 5 s, so that what was slow before a pause is forgotten soon after it
MIN_REQUESTS = 10
MAX_KEPT = 4_096  # latencies between two looks; of more the latest count
QUANTILE = 0.99
OK = "ok"


class Answered(Protocol):
    """The part of answered requests that is looked at; `serving.protocols.TapEvent` has it."""

    @property
    def latencies_s(self) -> Sequence[float]:
        """Of each request that was answered together with others; often one."""

    @property
    def outcome(self) -> str:
        """ "ok", or the code of an error."""


class LatencyObjective:
    """A `RequestTap` that knows whether the p99 is above `objective_s`. Thread-safe."""

    def __init__(self, objective_s: float) -> None:
        self._objective_s = objective_s
        self._latest: deque[float] = deque(maxlen=MAX_KEPT)
        self._window: deque[list[float]] = deque(maxlen=LOOKS)
        self._lock = threading.Lock()
        self._is_missed = False

    def on_response(self, event: Answered) -> None:
        """Note answers."""
        if event.outcome == OK:
            self._latest.extend(event.latencies_s)

    @property
    def is_missed(self) -> bool:
        """Whether requests took too long, at the last look."""
        return self._is_missed

    def look(self) -> bool:
        """Judge the last LOOKS looks together. Returns `is_missed`."""
        with self._lock:
            latest, self._latest = self._latest, deque(maxlen=MAX_KEPT)
            self._window.append(list(latest))
            p99_s = p99([latency_s for part in self._window for latency_s in part])
            self._is_missed = p99_s is not None and p99_s > self._objective_s
            return self._is_missed

    def watch(self, stop: Stop) -> None:
        """Look until `stop` is set: a lifecycle task."""
        while not stop.wait(LOOK_S):
            self.look()


def p99(latencies_s: list[float]) -> float | None:
    """The smallest latency that at least 99 of 100 don't exceed; None of fewer than MIN_REQUESTS."""
    if len(latencies_s) < MIN_REQUESTS:
        return None
    return sorted(latencies_s)[math.ceil(QUANTILE * len(latencies_s)) - 1]
