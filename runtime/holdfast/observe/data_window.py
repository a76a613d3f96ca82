"""Counts about the data: how features, confidence and predictions spread over the bins of the model's profile.

Rules:
- A window closes only when it holds at least the policy's minimum of rows; until then it goes on and merges forward.
  (Measured: 30 features x 10 bins at n <= 10 reveal whether a given person was in the window.)
- While the policy forbids data windows nothing is counted, and what was counted before is thrown away.
- Only counts are kept, never a row. Requests wait for counting in a bounded queue; when it is full they are left out
  of the window, never waited for.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from holdfast.bundle.manifest import ProfileEdges, Scores
from holdfast.bundle.profile import feature_columns
from holdfast.clock import Clock
from holdfast.observe.window import Answered
from holdfast.sketch.bins import BinCounts
from holdfast.wire import messages
from holdfast.wire.messages import DataWindow

Array = npt.NDArray[np.generic]

OK = "ok"
LOGITS = "logits"
MAX_QUEUED = 1_024  # requests
MAX_QUEUED_BYTES = 33_554_432  # 32 MiB of arrays that wait; they would be freed otherwise
MAX_MODELS = 64


class AnsweredWithData(Answered, Protocol):
    """An answered request with its arrays; read only."""

    @property
    def inputs(self) -> Mapping[str, Array] | None: ...

    @property
    def outputs(self) -> Mapping[str, Array] | None: ...


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What of a bundle is needed for counting: its edges, labels, and which output holds the scores."""

    bundle_digest: str
    edges: ProfileEdges
    labels: tuple[str, ...] = ()
    scores: Scores | None = None


@dataclass(frozen=True, slots=True)
class _Sample:
    profile: ModelProfile
    model: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    size_bytes: int


class DataMeter:
    """Slow windows, one per model and bundle. A `RequestTap`.

    Args:
        find_profile: (model, version) -> its profile; None if the model has none.
        allowed: whether the policy lets data windows leave at all, asked for every request.
    """

    def __init__(
        self, clock: Clock, find_profile: Callable[[str, str], ModelProfile | None], allowed: Callable[[], bool]
    ) -> None:
        self._clock = clock
        self._find_profile = find_profile
        self._allowed = allowed
        self._lock = threading.Lock()
        self._queue: deque[_Sample] = deque()
        self._queued_bytes = 0
        self._open: dict[tuple[str, str], _OpenWindow] = {}

    def on_response(self, event: AnsweredWithData) -> None:
        """Queue one answer for counting, or leave it out."""
        if event.outcome != OK or event.inputs is None or event.outputs is None or not self._allowed():
            return
        profile = self._find_profile(event.model, event.version)
        if profile is None:
            return
        size_bytes = sum(array.nbytes for array in (*event.inputs.values(), *event.outputs.values()))
        sample = _Sample(profile, event.model, event.inputs, event.outputs, size_bytes)
        with self._lock:
            if len(self._queue) < MAX_QUEUED and self._queued_bytes + size_bytes <= MAX_QUEUED_BYTES:
                self._queue.append(sample)
                self._queued_bytes += size_bytes

    def count(self) -> None:
        """Count what is queued. On a thread of its own, not the serving one; `count` and `close` have one caller."""
        while True:
            with self._lock:
                if not self._queue:
                    return
                sample = self._queue.popleft()
                self._queued_bytes -= sample.size_bytes
            if self._allowed():
                self._window(sample).add(sample)

    def close(self, minimum_rows: int) -> list[DataWindow]:
        """End and return the windows with at least `minimum_rows` rows; the others go on.

        While the policy forbids data windows everything counted is thrown away instead.
        """
        self.count()
        if not self._allowed():
            self._open.clear()
            return []
        full = [key for key, window in self._open.items() if window.rows >= minimum_rows]
        now_utc_ns = self._clock.utc_ns()
        return [self._open.pop(key).freeze(now_utc_ns) for key in full]

    def _window(self, sample: _Sample) -> _OpenWindow:
        key = (sample.model, sample.profile.bundle_digest)
        window = self._open.get(key)
        if window is None:
            if len(self._open) >= MAX_MODELS:
                self._open.pop(next(iter(self._open)))  # the oldest; a device does not serve that many models
            window = self._open[key] = _OpenWindow(sample.model, sample.profile, self._clock.utc_ns())
        return window


class _OpenWindow:
    def __init__(self, model: str, profile: ModelProfile, start_utc_ns: int) -> None:
        self.rows = 0
        self._model = model
        self._profile = profile
        self._start_utc_ns = start_utc_ns
        self._features = {each.name: BinCounts.empty(each.edges) for each in profile.edges.features}
        self._confidence = BinCounts.empty(profile.edges.confidence)
        self._predictions: Counter[str] = Counter()

    def add(self, sample: _Sample) -> None:
        columns = feature_columns(sample.inputs)
        rows = max((len(values) for values in columns.values()), default=0)
        for name, counts in self._features.items():
            if name in columns:
                self._features[name] = counts.add_many(columns[name])
        scores = self._scores(sample.outputs)
        if scores is not None:
            rows = max(rows, len(scores))
            self._add_scores(scores)
        self.rows += rows

    def freeze(self, end_utc_ns: int) -> DataWindow:
        return DataWindow(
            start_utc_ns=self._start_utc_ns,
            end_utc_ns=end_utc_ns,
            model=self._model,
            bundle_digest=self._profile.bundle_digest,
            rows=self.rows,
            features={name: messages.BinCounts(bins.counts) for name, bins in self._features.items()},
            confidence=messages.BinCounts(self._confidence.counts if self._confidence.edges else ()),
            predictions=dict(self._predictions),
        )

    def _scores(self, outputs: Mapping[str, Array]) -> npt.NDArray[np.float64] | None:
        """float64[rows, labels], the sample's scores; None if the profile names no such output or it has no rows."""
        if self._profile.scores is None:
            return None
        array = outputs.get(self._profile.scores.output)
        if array is None or array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
            return None
        scores = array.astype(np.float64)
        return scores if np.isfinite(scores).all() else None

    def _add_scores(self, scores: npt.NDArray[np.float64]) -> None:
        for index, count in enumerate(np.bincount(scores.argmax(axis=1), minlength=scores.shape[1]).tolist()):
            if count:
                labels = self._profile.labels
                self._predictions[labels[index] if index < len(labels) else str(index)] += count
        if self._confidence.edges and self._profile.scores is not None:
            highest = confidence(scores, logits=self._profile.scores.kind == LOGITS)
            self._confidence = self._confidence.add_many(highest)


def confidence(scores: npt.NDArray[np.float64], *, logits: bool) -> npt.NDArray[np.float64]:
    """The highest probability of each row: float64[rows] in (0, 1].

    scores: finite float64[rows, labels], not modified. Logits go through softmax, 1 / sum(exp(s - max(s))).
    """
    highest: npt.NDArray[np.float64] = scores.max(axis=1)
    if not logits:
        return highest
    total: npt.NDArray[np.float64] = np.exp(scores - highest[:, None]).sum(axis=1)
    return 1.0 / total
