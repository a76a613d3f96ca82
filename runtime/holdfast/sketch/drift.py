"""How far two distributions over the same bins are apart: population stability index and Jensen-Shannon divergence.

Both are effect sizes. Neither says whether the difference could be chance: with few rows they are large without any
drift, so an alarm needs a test beside them (a threshold alone is a batch-size lottery).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from holdfast.errors import FormatError, SketchMismatchError

PSI_FLOOR = 1e-4  # share given to a smaller bin; the logarithm of an empty one would be infinite


def psi(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Population stability index of two histograms, in nats (Siddiqi 2006, "Credit Risk Scorecards", ch. 5).

    Sum over the bins of (a - e) * ln(a / e), where e and a are the bins' shares. It is the sum of the two
    Kullback-Leibler divergences (Jeffreys). Shares below `PSI_FLOOR` count as `PSI_FLOOR` and are not renormalised:
    a bin that is empty on one side adds at most 9.2 nats times its share.

    Args:
        expected, actual: int64[bins], counts over the same bins, not modified.

    Returns:
        float >= 0; 0 for equal shares. Symmetric.

    Raises:
        SketchMismatchError: the numbers of bins differ.
        FormatError: a count is negative or not finite, or one side has no counts.
    """
    expected_shares, actual_shares = (np.maximum(shares, PSI_FLOOR) for shares in _shares(expected, actual))
    return float(np.sum((actual_shares - expected_shares) * np.log(actual_shares / expected_shares)))


def js(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Jensen-Shannon divergence of two histograms, in nats (Lin 1991, IEEE Trans. Inf. Theory 37(1), section IV).

    KL(e || m) / 2 + KL(a || m) / 2 with m = (e + a) / 2. Needs no smoothing: m is zero only where both are. Its square
    root is a metric.

    Args:
        expected, actual: int64[bins], counts over the same bins, not modified.

    Returns:
        float in [0, ln 2]; 0 iff the shares are equal (up to rounding). Symmetric.

    Raises:
        SketchMismatchError: the numbers of bins differ.
        FormatError: a count is negative or not finite, or one side has no counts.
    """
    expected_shares, actual_shares = _shares(expected, actual)
    middle = (expected_shares + actual_shares) / 2
    divergence = (_kl(expected_shares, middle) + _kl(actual_shares, middle)) / 2
    return min(max(divergence, 0.0), float(np.log(2)))  # rounding may leave the range by some 1e-17


def _kl(shares: npt.NDArray[np.float64], base: npt.NDArray[np.float64]) -> float:
    """Kullback-Leibler divergence; a bin without a share adds nothing (0 ln 0 = 0)."""
    filled = shares > 0
    return float(np.sum(shares[filled] * np.log(shares[filled] / base[filled])))


def _shares(expected: npt.ArrayLike, actual: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    first, second = np.asarray(expected, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise SketchMismatchError(f"histograms of {first.shape} and {second.shape} bins; expected one and the same row")
    return _normalised(first), _normalised(second)


def _normalised(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise FormatError("a bin count is negative or not finite")
    total = counts.sum()
    if total == 0:
        raise FormatError("a histogram without counts has no shares; wait for data")
    return np.asarray(counts / total, dtype=np.float64)
