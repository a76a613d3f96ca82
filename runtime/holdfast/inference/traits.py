"""What was measured of a model when it was loaded: how long a run takes, and whether strangers' rows may share one."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Mixing:
    """Whether requests may share a run. `buckets`: the batch sizes, rising, that were tried; larger ones don't mix."""

    is_allowed: bool
    reason: str
    buckets: tuple[int, ...] = ()

    def bucket_for(self, rows: int) -> int | None:
        """The smallest batch that holds `rows`; None if there is none."""
        at = bisect_left(self.buckets, rows)
        return self.buckets[at] if at < len(self.buckets) else None


NOT_CHECKED = Mixing(False, "not checked: the model was loaded without being measured")


@dataclass(frozen=True, slots=True)
class Traits:
    """Of a loaded model. Times are seconds on this machine, at load.

    run_s: a run of the smallest request; None if it could not be measured.
    run_elements: how many elements that request's inputs had.
    batch_s: what a run of each bucket takes.
    is_bounded: no loops: the time of a run follows from the size of its inputs.
    """

    run_s: float | None = None
    run_elements: int = 1
    batch_s: Mapping[int, float] = field(default_factory=dict)
    is_bounded: bool = False
    mixing: Mixing = NOT_CHECKED
    alones_s: tuple[float, ...] = field(init=False)
    shares_s: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        # by number of rows, where rows may mix: read for every request
        sizes = range(self.mixing.buckets[-1] + 1) if self.mixing.is_allowed else range(1)
        elements = self.run_elements
        object.__setattr__(self, "alones_s", tuple(map(_or_never, (self.alone_s(n, n * elements) for n in sizes))))
        object.__setattr__(self, "shares_s", tuple(self.share_s(n, n * elements) for n in sizes))

    def alone_s(self, rows: int, elements: int) -> float | None:
        """How long a run of one request may take; None if nobody can say.

        Known deviation: beyond the probed sizes linear in the elements, so too low for attention over long texts.
        """
        if self.run_s is None or not self.is_bounded:
            return None
        bucket = self.mixing.bucket_for(rows) if self.mixing.is_allowed and rows else None
        if bucket is not None:
            return self.batch_s[bucket]
        return self.run_s * max(1.0, elements / self.run_elements)

    def share_s(self, rows: int, elements: int) -> float:
        """What a request adds to a full queue: its part of a full batch, or its own run; 0 if nobody can say."""
        largest = self.mixing.buckets[-1] if self.mixing.is_allowed else 0
        if 0 < rows <= largest:
            return self.batch_s[largest] * rows / largest
        return self.alone_s(rows, elements) or 0.0


def _or_never(time_s: float | None) -> float:
    return math.inf if time_s is None else time_s


UNMEASURED = Traits()


def median(times: Sequence[float]) -> float:
    """Of one time or more; of an even number the upper middle one. numpy's own would load its masked arrays: 1 MB."""
    return sorted(times)[len(times) // 2]
