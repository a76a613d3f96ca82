"""What was answered and what it cost, per model and version: counters and histograms for statistics and metrics calls.

Rules: a model or version that is not served opens no entry, so that clients cannot make us remember names; of versions
that are no longer served a few stay, because who asks once a minute wants to see their last requests; batch sizes above
32 are rounded up to powers of two; the oldest entries go when there are too many. Called for every answer:
latencies are only appended there, and counted into the histogram when somebody asks or many wait.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast.clock import Clock
from holdfast.errors import UnknownModelError
from holdfast.inference.pool import ModelPool
from holdfast.serving.protocols import OK, BatchEvent, TapEvent
from holdfast.sketch.histogram import ExponentialHistogram, HistogramSnapshot

MAX_ENTRIES = 1_024  # models times versions, gone ones included
MAX_GONE = 16  # of those that are no longer served: 16 kB each, and a device that learns swaps for years
MAX_WAITING = 1_024  # latencies before they are counted: 8 kB an entry
EXACT_BATCH_SIZES = 32
NOWHERE = ("", "")  # errors of requests that name nothing we serve

Key = tuple[str, str]


@dataclass(slots=True)
class BatchCount:
    """Runs of one batch size."""

    runs: int = 0
    compute_s: float = 0.0


@dataclass(slots=True)
class ModelCounts:
    """The counters of one model version. `failed_s` is the time that errors took."""

    requests: int = 0
    rows: int = 0
    runs: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0  # of the runs
    charged_s: float = 0.0  # of the requests: each is charged the whole run it took part in, as in Triton
    failed_s: float = 0.0
    last_utc_ns: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    batches: dict[int, BatchCount] = field(default_factory=dict)
    latency: HistogramSnapshot = field(default_factory=lambda: ExponentialHistogram().snapshot())


class _Entry:
    """Counters as they grow."""

    def __init__(self) -> None:
        self.counts = ModelCounts()
        self.latencies = ExponentialHistogram()
        self.waiting: list[float] = []

    def settle(self) -> None:
        self.latencies.add_many(self.waiting)
        self.waiting.clear()


class Statistics:
    """A RequestTap and a SchedulerObserver that counts. Thread-safe."""

    def __init__(self, pool: ModelPool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[Key, _Entry] = {}

    def on_response(self, event: TapEvent) -> None:
        """Count answers."""
        key = (event.model, event.version)
        if event.outcome != OK:
            key = self._known(event.model, event.version)
        with self._lock:
            entry = self._entries.get(key) or self._open(key)
            counts = entry.counts
            if event.outcome == OK:
                counts.requests += len(event.latencies_s)
                entry.waiting += event.latencies_s
                if len(entry.waiting) >= MAX_WAITING:
                    entry.settle()
            else:
                counts.errors[event.outcome] = counts.errors.get(event.outcome, 0) + len(event.latencies_s)
                counts.failed_s += sum(event.latencies_s)

    def on_batch(self, event: BatchEvent) -> None:
        """Count one run of a model."""
        key = (event.model, event.version)
        size = event.rows if event.rows <= EXACT_BATCH_SIZES else 1 << (event.rows - 1).bit_length()
        with self._lock:
            counts = (self._entries.get(key) or self._open(key)).counts
            counts.runs += 1
            counts.last_utc_ns = self._clock.utc_ns()
            counts.rows += event.rows
            counts.queue_s += event.queue_s
            counts.compute_s += event.compute_s
            counts.charged_s += event.compute_s * event.requests
            batch = counts.batches.setdefault(size, BatchCount())
            batch.runs += 1
            batch.compute_s += event.compute_s

    def on_refused(self, model: str, version: str, code: str) -> None:
        """Nothing: a refused request is also an answer, and is counted as such."""

    def counts(self) -> Mapping[Key, ModelCounts]:
        """A copy of all counters by model and version; `NOWHERE` holds the errors that belong to none."""
        with self._lock:
            return {key: _copy(entry) for key, entry in self._entries.items()}

    def _known(self, model: str, version: str) -> Key:
        try:
            served = self._pool.get(model, version)
        except UnknownModelError:
            return NOWHERE
        return served.name, served.version

    def _open(self, key: Key) -> _Entry:
        gone = [known for known in self._entries if known != NOWHERE and self._pool.find(*known) is None]
        for known in gone[: max(0, len(gone) - MAX_GONE)]:
            del self._entries[known]
        while len(self._entries) >= MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = _Entry()
        return self._entries[key]


def _copy(entry: _Entry) -> ModelCounts:
    entry.settle()
    counts = entry.counts
    return ModelCounts(
        counts.requests,
        counts.rows,
        counts.runs,
        counts.queue_s,
        counts.compute_s,
        counts.charged_s,
        counts.failed_s,
        counts.last_utc_ns,
        dict(counts.errors),
        {size: BatchCount(batch.runs, batch.compute_s) for size, batch in counts.batches.items()},
        entry.latencies.snapshot(),
    )
