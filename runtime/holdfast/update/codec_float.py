"""Codecs that keep every value: float32 as it is, and float16 under one common power of two.

Byte formats, little-endian, n values:
    float32   n float32.
    float16   int16 exponent e, then n float16 h. Value = h * 2**e, rounded to float32. e is such that the largest
              magnitude has 2**14 <= |h| <= 2**15; all zeros: e = 0. n values take 2 n + 2 bytes.

Why an exponent: late in training a change of a weight falls below 6e-5, where plain float16 loses digits, and below
6e-8, where it turns to zero. A power of two costs no accuracy, so 40 binary orders below the largest value survive.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from holdfast.errors import FormatError
from holdfast.update.codec import Floats, check_bounded, check_length, check_values

TOP = 15  # the largest magnitude lies just below 2**15: half of the float16 range, so rounding up cannot overflow


class Float32Codec:
    """The values themselves."""

    name: Final = "float32"
    norm_growth: Final = 1.0
    keeps_residual: Final = False

    def encoded_size(self, count: int) -> int:
        return 4 * count

    def encode(self, values: Floats, rng: np.random.Generator) -> bytes:
        del rng  # nothing is random here
        check_values(values)
        return values.astype("<f4", copy=False).tobytes()

    def decode(self, data: bytes, count: int) -> Floats:
        check_length(self.name, data, self.encoded_size(count), count)
        values: Floats = np.frombuffer(data, dtype="<f4").copy()
        check_values(values)
        return values


class Float16Codec:
    """Round to nearest even at 11 binary digits: |decoded - x| <= 2**-11 |x| + 2**-39 max|x| (IEEE 754-2019, 4.3.1).

    norm_growth: the second term adds up to less than 2**-23 ||x|| for fewer than 2**31 values.
    """

    name: Final = "float16"
    norm_growth: Final = 1.0 + 2**-11 + 2**-23
    keeps_residual: Final = False

    def encoded_size(self, count: int) -> int:
        return 2 * count + 2

    def encode(self, values: Floats, rng: np.random.Generator) -> bytes:
        del rng
        check_values(values)
        largest = float(np.abs(values).max(initial=0.0))
        exponent = int(np.frexp(largest)[1]) - TOP if largest > 0 else 0
        halves = np.ldexp(values.astype(np.float64), -exponent).astype("<f2")
        check_bounded(float(np.abs(halves).max(initial=0.0)) * 2.0**exponent)
        return struct.pack("<h", exponent) + halves.tobytes()

    def decode(self, data: bytes, count: int) -> Floats:
        check_length(self.name, data, self.encoded_size(count), count)
        (exponent,) = struct.unpack_from("<h", data)
        halves = np.frombuffer(data, dtype="<f2", offset=2).astype(np.float64)
        largest = float(np.abs(halves).max(initial=0.0))
        if not (2.0 ** (TOP - 1) <= largest <= 2.0**TOP or (largest == 0 and exponent == 0)):
            raise FormatError(f"{self.name}: the exponent does not fit the values, or a value is NaN or infinite")
        if not -(149 + TOP) <= exponent <= 128 - TOP:
            raise FormatError(f"{self.name}: exponent {exponent} is beyond what float32 values have")
        check_bounded(largest * 2.0**exponent)
        values: Floats = np.ldexp(halves, exponent).astype(np.float32)
        return values
