"""Latency of one call, and whether the machine or the model made it slow.

Rules: every call is tagged with the time its thread stood in the run queue (`/proc/thread-self/schedstat`, field 2), so
that a busy machine shows in the figures instead of hiding in them; a percentile that the number of calls cannot support
is null; nanoseconds are whole numbers. Raw figures are all calls, clean ones those that never waited for a core.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from holdfast.clock import Clock

MIN_CALLS_OF = {50: 10, 90: 50, 99: 500}  # five calls or more lie beyond each percentile that is printed
WARM_UP_CALLS = 20
MAX_CALLS = 2_000_000  # 16 MB of latencies; a call of 1 us fills this in some seconds
QUIET_PCT, UNUSABLE_PCT = 1.0, 20.0  # of time in the run queue
SCHEDSTAT = "/proc/thread-self/schedstat"


@dataclass(slots=True)
class Latencies:
    """Latencies in nanoseconds, each with the nanoseconds its thread waited for a core meanwhile."""

    latency_ns: list[int] = field(default_factory=list)
    queued_ns: list[int] = field(default_factory=list)
    tagged: bool = True

    def add(self, latency_ns: int, queued_ns: int) -> None:
        self.latency_ns.append(latency_ns)
        self.queued_ns.append(queued_ns)


class RunQueue:
    """Time that this thread stood runnable without a core. Use it from the thread that made it, then close."""

    def __init__(self) -> None:
        try:
            self._file: int | None = os.open(SCHEDSTAT, os.O_RDONLY)
            self.waited_ns()
        except (OSError, ValueError, IndexError):
            self._file = None

    @property
    def is_available(self) -> bool:
        return self._file is not None

    def waited_ns(self) -> int:
        """Nanoseconds since the thread began; 0 where the kernel does not tell."""
        return 0 if self._file is None else int(os.pread(self._file, 128, 0).split()[1])

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def measure(call: Callable[[], object], seconds: float, clock: Clock, into: Latencies) -> None:
    """Call again and again for `seconds`, at least once, and note each latency."""
    queue = RunQueue()
    into.tagged = into.tagged and queue.is_available
    try:
        end_s = clock.monotonic_s() + seconds
        while True:
            queued_ns = queue.waited_ns()
            start_s = clock.monotonic_s()
            call()
            stop_s = clock.monotonic_s()
            into.add(round((stop_s - start_s) * 1e9), queue.waited_ns() - queued_ns)
            if stop_s >= end_s or len(into.latency_ns) >= MAX_CALLS:
                return
    finally:
        queue.close()


def warm_up(call: Callable[[], object]) -> None:
    """Calls that are not counted."""
    for _ in range(WARM_UP_CALLS):
        call()


def summary(latency_ns: list[int]) -> dict[str, int | None]:
    """n, min, p50, p90, p99, max and mean in nanoseconds; null where there are too few calls to say."""
    values = np.asarray(latency_ns, dtype=np.int64)
    if not values.size:
        return {"n": 0, "min": None, "p50": None, "p90": None, "p99": None, "max": None, "mean": None}
    result: dict[str, int | None] = {"n": int(values.size), "min": int(values.min())}
    for percent, needed in MIN_CALLS_OF.items():
        enough = values.size >= needed
        result[f"p{percent}"] = int(np.percentile(values, percent, method="higher")) if enough else None
    result["max"] = int(values.max())
    result["mean"] = round(float(values.mean()))
    return result


def report(measured: Latencies, *, clean_reason: str | None = None) -> dict[str, object]:
    """Raw and clean summaries. `clean_reason` says why there can be no clean one."""
    reason = clean_reason or (None if measured.tagged else f"{SCHEDSTAT} cannot be read on this machine")
    if reason is not None:
        return {"raw": summary(measured.latency_ns), "clean": None, "clean_reason": reason}
    pairs = zip(measured.latency_ns, measured.queued_ns, strict=True)
    clean = [latency for latency, queued in pairs if queued == 0]
    return {"raw": summary(measured.latency_ns), "clean": summary(clean), "clean_reason": None}


def noise(measured: Latencies) -> dict[str, object]:
    """How much of the measured time the calling thread waited for a core, and what that means for the figures."""
    if not measured.tagged or not measured.latency_ns:
        return {"run_queue_pct": None, "dirty_pct": None, "verdict": "unknown"}
    share = 100.0 * sum(measured.queued_ns) / max(1, sum(measured.latency_ns))
    dirty = 100.0 * sum(queued > 0 for queued in measured.queued_ns) / len(measured.queued_ns)
    verdict = "quiet" if share < QUIET_PCT else "unusable" if share > UNUSABLE_PCT else "noisy"
    return {"run_queue_pct": round(share, 3), "dirty_pct": round(dirty, 3), "verdict": verdict}
