"""How updates become one: the weighted mean (FedAvg), in a stream, one update in memory at a time.

w_{t+1} = w_t + sum_k n_k delta_k / sum_k n_k  (McMahan et al. 2017, algorithm 1, with delta_k = w_k - w_t), over the
k whose updates were accepted; n_k = samples that device k says it used, bounded by the offer. Sums are float64, so the
order of arrival moves the result by less than float32 can show.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import RoundError

Floats = NDArray[np.float32]
Sums = NDArray[np.float64]


class WeightedMean:
    """Running weighted sum of deltas. `sums` (float64[n]) and `weight` are its whole state."""

    def __init__(self, count: int) -> None:
        self.sums: Sums = np.zeros(count, dtype="<f8")
        self.weight = 0

    @classmethod
    def resume(cls, sums: bytes, weight: int) -> WeightedMean:
        """From what a checkpoint kept."""
        mean = cls(0)
        mean.sums = np.frombuffer(sums, dtype="<f8").copy()
        mean.weight = weight
        return mean

    def add(self, delta: Floats, sample_count: int) -> None:
        """Take one accepted update in. delta: float32[n], finite, not modified."""
        if delta.shape != self.sums.shape or sample_count < 1:
            raise RoundError(f"an update of {delta.size} values and {sample_count} samples does not fit this round")
        self.sums += delta.astype(np.float64) * sample_count
        self.weight += sample_count

    def result(self) -> Floats:
        """float32[n]: the mean. Raises: RoundError: nothing was added."""
        if self.weight == 0:
            raise RoundError("no update was accepted in this round")
        mean: Floats = (self.sums / self.weight).astype("<f4")
        return mean
