"""Codecs that quantise blocks of values: a few bits each, one scale per block, stochastic rounding.

Byte formats, little-endian, n values, b = ceil(n / block) blocks (the last may be shorter). First b float32 scales,
then the levels; value = level * scale, rounded to float32; a block of zeros has scale 0 and levels 0.
    int8-block256-stochastic   n int8 levels in [-127, 127]. n + 4 b bytes: 3.94 times fewer than float32.
    int4-block64-stochastic    levels in [-7, 7] as 4-bit two's complement, two to a byte, the earlier one in the low
                               half; a half byte left over is 0. ceil(n / 2) + 4 b bytes: 7.1 times fewer.

For a block with m = max|x| and L levels: s = m / L rounded up to float32, level = floor(x / s + u), u ~ U[0, 1).
E[level * s] = x (the rounding of the product to float32 aside), |level * s - x| < s. This is the low-precision
quantiser that FedPAQ analyses (Reisizadeh et al., AISTATS 2020, arXiv 1909.13014, Assumption 1 and Example 1, after
QSGD, Alistarh et al. 2017, eq. 4-5), with the block's largest magnitude in the place of its 2-norm.
Norm: ||Q(x) - x||^2 <= sum over blocks of B s^2 <= (B / L^2) ||x||^2, hence norm_growth = 1 + sqrt(B) / L (+ rounding).

Why float32 scales and not float16: late in training a block's largest change divided by 127 falls below 6e-8, the
smallest float16, and the whole block would turn to zero. The price is 0.8 % more bytes of int8.
Why blocks of 64 for int4: at 256 the norm could grow 3.3 times instead of 2.1, and a clip has to leave room for it.
Known deviation: a scale below the smallest normal float32 is kept as a subnormal; machines that flush subnormals to
zero are not supported.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import FormatError
from holdfast.update.codec import Floats, check_bounded, check_length, check_values

_ROUNDING = 1e-6

Levels = NDArray[np.int8]


class Int8BlockCodec:
    """8 bits a value; see the module for format, formula and source."""

    name: Final = "int8-block256-stochastic"
    block: Final = 256  # one outlier spoils little, and the scales cost 1.6 %
    levels: Final = 127  # without -128, so that they are symmetric around zero
    norm_growth: Final = 1.0 + math.sqrt(block) / levels + _ROUNDING
    keeps_residual: Final = False

    def encoded_size(self, count: int) -> int:
        return count + 4 * _block_count(count, self.block)

    def encode(self, values: Floats, rng: np.random.Generator) -> bytes:
        scales, levels = _quantise(values, self.block, self.levels, rng)
        return scales.astype("<f4").tobytes() + levels.tobytes()

    def decode(self, data: bytes, count: int) -> Floats:
        check_length(self.name, data, self.encoded_size(count), count)
        blocks = _block_count(count, self.block)
        levels = np.frombuffer(data, dtype=np.int8, offset=4 * blocks)
        return _restore(self.name, np.frombuffer(data, dtype="<f4", count=blocks), levels, self.block, self.levels)


class Int4BlockCodec:
    """4 bits a value; see the module for format, formula and source."""

    name: Final = "int4-block64-stochastic"
    block: Final = 64
    levels: Final = 7
    norm_growth: Final = 1.0 + math.sqrt(block) / levels + _ROUNDING
    keeps_residual: Final = False

    def encoded_size(self, count: int) -> int:
        return -(-count // 2) + 4 * _block_count(count, self.block)

    def encode(self, values: Floats, rng: np.random.Generator) -> bytes:
        scales, levels = _quantise(values, self.block, self.levels, rng)
        halves = np.zeros(levels.size + levels.size % 2, dtype=np.uint8)
        halves[: levels.size] = levels.view(np.uint8) & 0x0F
        return scales.astype("<f4").tobytes() + (halves[0::2] | (halves[1::2] << 4)).tobytes()

    def decode(self, data: bytes, count: int) -> Floats:
        check_length(self.name, data, self.encoded_size(count), count)
        blocks = _block_count(count, self.block)
        packed = np.frombuffer(data, dtype=np.uint8, offset=4 * blocks)
        halves = np.empty(2 * packed.size, dtype=np.uint8)
        halves[0::2], halves[1::2] = packed & 0x0F, packed >> 4
        if np.any(halves[count:]):
            raise FormatError(f"{self.name}: the half byte after the last value is not 0")
        levels = ((halves[:count] ^ 8).astype(np.int8) - 8).astype(np.int8)  # extends the sign of 4 bits
        return _restore(self.name, np.frombuffer(data, dtype="<f4", count=blocks), levels, self.block, self.levels)


def _block_count(count: int, block: int) -> int:
    return -(-count // block)


def _quantise(values: Floats, block: int, top: int, rng: np.random.Generator) -> tuple[Floats, Levels]:
    """float32[blocks] scales and int8[n] levels."""
    check_values(values)
    scales = _block_scales(values, block, top)
    spread = np.repeat(scales, block)[: values.size].astype(np.float64)
    ratio = np.divide(values, spread, out=np.zeros(values.size), where=spread > 0)
    # |ratio| <= top because scales are rounded up, so floor(top + u) = top and no clipping biases the result
    return scales, np.floor(ratio + rng.random(values.size)).astype(np.int8)


def _block_scales(values: Floats, block: int, top: int) -> Floats:
    """float32[blocks]: the smallest float32 s with top * s >= max|x| of the block."""
    padded = np.zeros(_block_count(values.size, block) * block, dtype=np.float64)
    padded[: values.size] = np.abs(values)
    largest = padded.reshape(-1, block).max(axis=1, initial=0.0)
    scales: Floats = (largest / top).astype(np.float32)
    too_small = scales.astype(np.float64) * top < largest
    scales[too_small] = np.nextafter(scales[too_small], np.float32(np.inf))
    check_bounded(float(scales.max(initial=0.0)) * top)
    return scales


def _restore(name: str, scales: Floats, levels: Levels, block: int, top: int) -> Floats:
    if not np.all(np.isfinite(scales)) or np.any(np.signbit(scales)):
        raise FormatError(f"{name}: a block scale is negative, NaN or infinite; expected a finite scale >= 0")
    if np.any(levels < -top):
        raise FormatError(f"{name}: level {-top - 1} found; expected levels from {-top} to {top}")
    spread = np.repeat(scales, block)[: levels.size]
    if np.any(levels[spread == 0]):
        raise FormatError(f"{name}: a block of scale 0 has a level other than 0")
    with np.errstate(over="ignore"):
        values: Floats = levels.astype(np.float32) * spread
    check_values(values)
    return values
