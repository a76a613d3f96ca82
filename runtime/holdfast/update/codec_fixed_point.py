"""A codec whose sums are exact: integers under one scale that all senders share.

Byte format, little-endian, n values: n int32 levels; value = level / 2**20. 4 n bytes.
    fixed32-2p20   |level| < 2**21, so |value| < 2, and up to 1,024 updates add up within 32 bits.

Why: a sum of floats depends on its order, and masks that cancel (Bonawitz et al. 2017, CCS, section 4: sums modulo R)
need integers. Here any order, and any grouping, gives the same bits; modulo 2**32 as well as in wide integers.
A value out of range is refused, never cut: a cut value would bias the sum in silence.
Rounding is to nearest, ties to even: |decoded - x| <= 2**-21. norm_growth is 2 because a value just above 2**-21
becomes 2**-20; for updates of ordinary size it is 1 + 2**-21 sqrt(n) / ||x||.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import FormatError
from holdfast.update.codec import Floats, check_length, check_values

SCALE = 2**20  # levels per 1: a resolution of 1e-6, a thousandth of what a weight moves in a round
MAX_PARTS = 1_024  # updates in one sum
LEVEL_LIMIT = 2**31 // MAX_PARTS  # exclusive

Levels = NDArray[np.int32]


class FixedPointCodec:
    """Levels under the shared scale; see the module."""

    name: Final = "fixed32-2p20"
    norm_growth: Final = 2.0
    keeps_residual: Final = False

    def encoded_size(self, count: int) -> int:
        return 4 * count

    def encode(self, values: Floats, rng: np.random.Generator) -> bytes:
        del rng
        check_values(values)
        levels = np.rint(values.astype(np.float64) * SCALE)
        outside = np.flatnonzero(np.abs(levels) >= LEVEL_LIMIT)
        if outside.size:
            raise FormatError(
                f"{self.name}: value {outside[0]} is outside +-{LEVEL_LIMIT / SCALE:g} ({outside.size} such values); "
                "clip lower, or use another codec"
            )
        return levels.astype("<i4").tobytes()

    def decode(self, data: bytes, count: int) -> Floats:
        # |level| < 2**21 fits float32, and a power of two divides exactly
        return (self.levels(data, count) / np.float32(SCALE)).astype(np.float32)

    def levels(self, data: bytes, count: int) -> Levels:
        """int32[count]: the integers of one update. Raises FormatError: length or range."""
        check_length(self.name, data, self.encoded_size(count), count)
        levels = np.frombuffer(data, dtype="<i4")
        if np.any((levels >= LEVEL_LIMIT) | (levels <= -LEVEL_LIMIT)):
            raise FormatError(f"{self.name}: a level is outside +-{LEVEL_LIMIT}, which no sender writes")
        return levels


def exact_sum(updates: Iterable[bytes], count: int) -> NDArray[np.float64]:
    """The sum of encoded updates: float64[count], without any rounding, the same for every order.

    Raises: FormatError: an update does not decode, or there are more than MAX_PARTS.
    """
    codec = FixedPointCodec()
    total = np.zeros(count, dtype=np.int64)
    for number, data in enumerate(updates, 1):
        if number > MAX_PARTS:
            raise FormatError(f"more than {MAX_PARTS} updates in one sum; add up groups of them")
        total += codec.levels(data, count)
    return total / SCALE  # |total| < 2**31, so float64 holds the quotient exactly
