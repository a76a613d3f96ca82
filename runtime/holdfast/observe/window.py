"""The operational window: how many requests ended how, how fast, at which cost. It says nothing about the data.

`WindowMeter` is told of every answer on the thread that gives it, so it adds to two counters under a lock and returns.
Names that a client made up (an unknown model) are not kept: they are the client's words, and could hold anything.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from holdfast.clock import Clock
from holdfast.errors import UnknownModelError
from holdfast.sketch.histogram import ExponentialHistogram
from holdfast.wire.histograms import to_message
from holdfast.wire.messages import ModelWindow, OperationalWindow

MAX_MODELS = 64  # of one window; what comes beyond is counted under no name
MAX_LATENCY_S = 86_400.0  # a request cannot take longer than a day; a larger figure is a clock that jumped


class Answered(Protocol):
    """The part of answered requests that is counted here; `serving.protocols.TapEvent` has it."""

    @property
    def model(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def latencies_s(self) -> Sequence[float]:
        """Of each request that was answered together with others; often one."""

    @property
    def outcome(self) -> str:
        """ "ok", or the code of an error."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What the process has used. cpu_s: user and system, since its start; memory_bytes: resident now."""

    cpu_s: float
    memory_bytes: int


@dataclass(slots=True)
class _Count:
    outcomes: Counter[str] = field(default_factory=Counter)
    latency_s: ExponentialHistogram = field(default_factory=ExponentialHistogram)


class WindowMeter:
    """Counts answers until the window is closed. Thread-safe; a `RequestTap`.

    Args:
        digest_of: (model, version) -> digest of the bundle in service, "" if it is not known.
        bytes_out: bytes that left since it was last asked, by purpose.
    """

    def __init__(
        self,
        clock: Clock,
        digest_of: Callable[[str, str], str] = lambda model, version: "",
        bytes_out: Callable[[], Mapping[str, int]] = dict,
        resources: Callable[[], Resources] | None = None,
    ) -> None:
        self._clock = clock
        self._digest_of = digest_of
        self._bytes_out = bytes_out
        self._resources = resources or own_resources
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], _Count] = {}
        self._start_utc_ns = clock.utc_ns()
        self._cpu_s = self._resources().cpu_s

    def on_response(self, event: Answered) -> None:
        """Count answers."""
        key = ("", "") if event.outcome == UnknownModelError.code else (event.model, event.version)
        latencies_s = [each for each in event.latencies_s if 0.0 <= each <= MAX_LATENCY_S]
        with self._lock:
            count = self._counts.get(key)
            if count is None:
                key = key if len(self._counts) < MAX_MODELS else ("", "")
                count = self._counts.setdefault(key, _Count())
            count.outcomes[event.outcome] += len(event.latencies_s)
            for latency_s in latencies_s:
                count.latency_s.add(latency_s)

    def close(self) -> OperationalWindow:
        """End the window and begin the next one."""
        end_utc_ns = self._clock.utc_ns()
        used = self._resources()
        with self._lock:
            counts, self._counts = self._counts, {}
            start_utc_ns, self._start_utc_ns = self._start_utc_ns, end_utc_ns
            cpu_s, self._cpu_s = used.cpu_s - self._cpu_s, used.cpu_s
        models = tuple(
            ModelWindow(
                model=model,
                version=version,
                bundle_digest=self._digest_of(model, version) if model else "",
                outcomes=dict(count.outcomes),
                latency_s=to_message(count.latency_s.snapshot()),
            )
            for (model, version), count in sorted(counts.items())
        )
        return OperationalWindow(
            start_utc_ns=start_utc_ns,
            end_utc_ns=end_utc_ns,
            models=models,
            cpu_s=max(0.0, cpu_s),
            memory_bytes=used.memory_bytes,
            bytes_out=dict(self._bytes_out()),
        )


def own_resources() -> Resources:
    """What this process uses, from the operating system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            memory_bytes = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        memory_bytes = usage.ru_maxrss * 1024  # no /proc here: the peak instead of the present
    return Resources(usage.ru_utime + usage.ru_stime, memory_bytes)
