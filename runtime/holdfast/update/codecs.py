"""Codecs: how a change of the weights becomes bytes for the uplink, and back.

Rules: a codec is pure numpy and stateless; its bytes are exactly defined here and never change under the same name;
`encode` takes its randomness from the generator it is handed; `decode` is exact (every machine gets the same bits) and
refuses any bytes that `encode` could not have written; NaN and infinity are refused on both sides.

Byte formats, all little-endian, n values:
    float32                    n float32.
    int8-block256-stochastic   ceil(n/256) float32 scales, one per block of 256 values (the last block may be shorter),
                               then n int8 levels in [-127, 127]. Value = level * scale, rounded to float32. A block of
                               zeros has scale 0 and levels 0. n values take n + 4*ceil(n/256) bytes: 3.94 times fewer.

Why float32 scales and not float16: late in training a block's largest change divided by 127 falls below 6e-8, the
smallest float16, and the whole block would turn to zero. The price is 0.8 % more bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import FormatError, RoundError

BLOCK = 256  # values that share a scale: one outlier spoils little, and the scales cost 1.6 %
LEVELS = 127  # int8 without -128, so that the levels are symmetric around zero
WEIGHTED_MEAN = "weighted_mean"

Floats = NDArray[np.float32]


class Codec(Protocol):
    """Turns float32[n] into bytes and back. Stateless; safe to share between threads."""

    @property
    def name(self) -> str:
        """The stable name that offers and updates carry."""

    @property
    def norm_growth(self) -> float:
        """Upper bound of ||decode(encode(x))||_2 / ||x||_2 over all x and all random draws."""

    def encoded_size(self, count: int) -> int:
        """How many bytes `count` values take."""

    def encode(self, values: Floats, rng: np.random.Generator) -> bytes:
        """float32[n], finite, not modified -> bytes. Raises FormatError for NaN or infinity."""

    def decode(self, data: bytes, count: int) -> Floats:
        """bytes -> float32[count], a new array. Raises FormatError for anything `encode` does not write."""


class Float32Codec:
    """The values themselves."""

    name: Final = "float32"
    norm_growth: Final = 1.0

    def encoded_size(self, count: int) -> int:
        return 4 * count

    def encode(self, values: Floats, rng: np.random.Generator) -> bytes:
        del rng  # nothing is random here
        _check_values(values)
        return values.astype("<f4", copy=False).tobytes()

    def decode(self, data: bytes, count: int) -> Floats:
        _check_length(self.name, data, self.encoded_size(count), count)
        values: Floats = np.frombuffer(data, dtype="<f4").copy()
        _check_values(values)
        return values


class Int8BlockCodec:
    """Unbiased 8-bit quantisation with stochastic rounding, one scale per block of 256 values.

    For a block b with m_b = max|x|: s_b = m_b / 127 rounded up to float32, level = floor(x / s_b + u), u ~ U[0, 1).
    E[level * s_b] = x (the rounding of the product to float32 aside), |level * s_b - x| < s_b.
    This is the low-precision quantiser that FedPAQ analyses (Reisizadeh et al., AISTATS 2020, arXiv 1909.13014,
    Assumption 1 and Example 1, after QSGD, Alistarh et al. 2017, eq. 4-5), with the block's largest magnitude in the
    place of its 2-norm.

    Norm: ||Q(x) - x||^2 <= sum_b 256 s_b^2 <= (256 / 127^2) ||x||^2, hence norm_growth = 1 + 16/127 (+ rounding).
    Known deviation: a scale below the smallest normal float32 is kept as a subnormal; machines that flush subnormals
    to zero are not supported.
    """

    name: Final = "int8-block256-stochastic"
    norm_growth: Final = 1.0 + math.sqrt(BLOCK) / LEVELS + 1e-6

    def encoded_size(self, count: int) -> int:
        return count + 4 * _block_count(count)

    def encode(self, values: Floats, rng: np.random.Generator) -> bytes:
        _check_values(values)
        scales = _block_scales(values)
        spread = np.repeat(scales, BLOCK)[: values.size].astype(np.float64)
        ratio = np.divide(values, spread, out=np.zeros(values.size), where=spread > 0)
        # |ratio| <= 127 because scales are rounded up, so floor(127 + u) = 127 and no clipping biases the result
        levels = np.floor(ratio + rng.random(values.size)).astype(np.int8)
        return scales.astype("<f4").tobytes() + levels.tobytes()

    def decode(self, data: bytes, count: int) -> Floats:
        _check_length(self.name, data, self.encoded_size(count), count)
        blocks = _block_count(count)
        scales = np.frombuffer(data, dtype="<f4", count=blocks)
        levels = np.frombuffer(data, dtype=np.int8, offset=4 * blocks)
        if not np.all(np.isfinite(scales)) or np.any(np.signbit(scales)):
            raise FormatError(f"{self.name}: a block scale is negative, NaN or infinite; expected a finite scale >= 0")
        if np.any(levels == -128):
            raise FormatError(f"{self.name}: level -128 found; expected levels from -127 to 127")
        spread = np.repeat(scales, BLOCK)[:count]
        if np.any(levels[spread == 0]):
            raise FormatError(f"{self.name}: a block of scale 0 has a level other than 0")
        with np.errstate(over="ignore"):
            values: Floats = levels.astype(np.float32) * spread
        _check_values(values)
        return values


CODECS: Mapping[str, Codec] = MappingProxyType({c.name: c for c in (Float32Codec(), Int8BlockCodec())})

# Which codec may meet which aggregation, with the reason a reader needs. A pair that is not listed is refused.
LEGALITY: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        (Float32Codec.name, WEIGHTED_MEAN): "exact",
        (Int8BlockCodec.name, WEIGHTED_MEAN): "unbiased, so the mean over clients keeps its expectation (FedPAQ)",
    }
)


def codec_named(name: str) -> Codec:
    """The codec of that name. Raises: FormatError: no such codec."""
    codec = CODECS.get(name)
    if codec is None:
        raise FormatError(f"unknown codec {name!r}; expected one of {', '.join(sorted(CODECS))}")
    return codec


def check_legal(codec: str, aggregation: str) -> None:
    """Raise RoundError unless updates under `codec` may be combined by `aggregation`."""
    if (codec, aggregation) not in LEGALITY:
        allowed = ", ".join(f"{c} with {a}" for c, a in sorted(LEGALITY))
        raise RoundError(f"codec {codec!r} may not meet aggregation {aggregation!r}; allowed: {allowed}")


def _block_count(count: int) -> int:
    return -(-count // BLOCK)


def _block_scales(values: Floats) -> Floats:
    """float32[blocks]: the smallest float32 s with 127 * s >= max|x| of the block."""
    padded = np.zeros(_block_count(values.size) * BLOCK, dtype=np.float64)
    padded[: values.size] = np.abs(values)
    largest = padded.reshape(-1, BLOCK).max(axis=1, initial=0.0)
    scales: Floats = (largest / LEVELS).astype(np.float32)
    too_small = scales.astype(np.float64) * LEVELS < largest
    scales[too_small] = np.nextafter(scales[too_small], np.float32(np.inf))
    if np.any(scales.astype(np.float64) * LEVELS > np.finfo(np.float32).max):
        raise FormatError("a value is as large as float32 allows; an update of that size has diverged")
    return scales


def _check_values(values: Floats) -> None:
    if values.dtype != np.float32 or values.ndim != 1:
        raise FormatError(f"values must be float32[n], got {values.dtype}{list(values.shape)}")
    finite = np.isfinite(values)
    if not finite.all():
        index = int(np.argmin(finite))
        raise FormatError(f"value {index} is {values[index]}; only finite values can be encoded")


def _check_length(name: str, data: bytes, expected: int, count: int) -> None:
    if len(data) != expected:
        raise FormatError(f"{name}: {len(data)} bytes for {count} values, expected {expected}")
