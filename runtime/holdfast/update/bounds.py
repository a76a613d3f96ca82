"""The norm of an update: measured, clipped on the device, and checked again where it is received.

Both sides call these functions, so a device's claim and a coordinator's check cannot differ by method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import RoundError
from holdfast.update.codec import Codec

Floats = NDArray[np.float32]
_ROUNDING = 1e-6  # relative; float32 rounding of each clipped value moves the norm by less than 2**-24


@dataclass(frozen=True, slots=True)
class ClippedDelta:
    """A delta whose 2-norm is at most the clip it was made with, and what the norm was before and is now."""

    delta: Floats
    norm_before: float
    norm: float

    @property
    def was_clipped(self) -> bool:
        return self.norm < self.norm_before


def measured_norm(delta: Floats) -> float:
    """||delta||_2 = sqrt(sum x_i^2), accumulated in float64. delta: float32[n], not modified.

    numpy's pairwise summation makes it the same on every run of one machine; across machines the last bits may differ.
    """
    wide = delta.astype(np.float64)
    return math.sqrt(float(np.sum(wide * wide)))


def clip_to_norm(delta: Floats, clip: float) -> ClippedDelta:
    """Scale `delta` down so that its 2-norm is at most `clip`: delta * min(1, clip / ||delta||_2).

    (Gradient clipping as in Abadi et al. 2016, algorithm 1, applied to a whole update: McMahan et al. 2018, DP-FedAvg.)
    delta: float32[n], finite, not modified. The result, measured after rounding to float32, is never above clip.

    Raises: RoundError: `clip` is not a positive number, or delta is not finite.
    """
    if not (math.isfinite(clip) and clip > 0):
        raise RoundError(f"clip must be a positive number, got {clip}")
    before = measured_norm(delta)
    if not math.isfinite(before):
        raise RoundError("the update holds NaN or infinity; it cannot be clipped")
    if before <= clip:
        return ClippedDelta(delta=delta, norm_before=before, norm=before)
    scaled = (delta.astype(np.float64) * (clip / before * (1.0 - _ROUNDING))).astype(np.float32)
    return ClippedDelta(delta=scaled, norm_before=before, norm=measured_norm(scaled))


def decoded_norm_limit(codec: Codec, clip: float) -> float:
    """The largest 2-norm that an update clipped to `clip` can have after `codec` carried it.

    Quantisation adds noise, so the decoded norm can exceed the clip by the codec's `norm_growth`; a receiver that
    compared with the clip itself would refuse honest devices.
    """
    return clip * codec.norm_growth * (1.0 + _ROUNDING)


def check_decoded_norm(delta: Floats, codec: Codec, clip: float) -> float:
    """The 2-norm of a received, decoded update.

    Raises: RoundError: it is larger than any honest device's could be.
    """
    norm = measured_norm(delta)
    limit = decoded_norm_limit(codec, clip)
    if not norm <= limit:
        raise RoundError(f"the update's norm is {norm:.6g}, above {limit:.6g} (clip {clip:.6g} under {codec.name})")
    return norm
