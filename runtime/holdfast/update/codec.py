"""What a codec is, and the checks that all of them share.

Rules: a codec is pure numpy and stateless; its bytes are exactly defined in its file and never change under the same
name; `encode` takes its randomness from the generator it is handed; `decode` is exact (every machine gets the same
bits) and refuses what `encode` does not write; NaN and infinity are refused on both sides. The size of an update
depends on the number of its values and on nothing else: a size that followed the values would tell something of them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import FormatError

Floats = NDArray[np.float32]


class Codec(Protocol):
    """Turns float32[n] into bytes and back. Stateless; safe to share between threads."""

    @property
    def name(self) -> str:
        """The stable name that offers and updates carry."""

    @property
    def norm_growth(self) -> float:
        """Upper bound of ||decode(encode(x))||_2 / ||x||_2 over all x and all random draws."""

    @property
    def keeps_residual(self) -> bool:
        """Whether what it leaves out must be added to the sender's next update (see `feedback.py`)."""

    def encoded_size(self, count: int) -> int:
        """How many bytes `count` values take."""

    def encode(self, values: Floats, rng: np.random.Generator) -> bytes:
        """float32[n], finite, not modified -> bytes. Raises FormatError for NaN or infinity."""

    def decode(self, data: bytes, count: int) -> Floats:
        """bytes -> float32[count], a new array. Raises FormatError for anything `encode` does not write."""


def check_values(values: Floats) -> None:
    """Raise FormatError unless `values` is float32[n] and finite."""
    if values.dtype != np.float32 or values.ndim != 1:
        raise FormatError(f"values must be float32[n], got {values.dtype}{list(values.shape)}")
    finite = np.isfinite(values)
    if not finite.all():
        index = int(np.argmin(finite))
        raise FormatError(f"value {index} is {values[index]}; only finite values can be encoded")


def check_length(name: str, data: bytes, expected: int, count: int) -> None:
    """Raise FormatError unless `data` has the length that `count` values take."""
    if len(data) != expected:
        raise FormatError(f"{name}: {len(data)} bytes for {count} values, expected {expected}")


def check_bounded(largest: float) -> None:
    """Raise FormatError for a magnitude that rounding could carry past the largest float32."""
    if largest > float(np.finfo(np.float32).max):
        raise FormatError("a value is as large as float32 allows; an update of that size has diverged")
