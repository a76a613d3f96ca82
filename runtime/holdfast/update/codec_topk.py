"""Codecs that send only the largest changes and leave the rest to later rounds.

Byte format, little-endian, n values, k = ceil(n / share): the positions of the k values of largest magnitude (of equal
ones the earlier), then their k float32 values in order of position. The positions are a bitmap (bit i % 8 of byte
i // 8 is value i; bits past n are 0) where that is no longer than k uint32 indices, else those, rising.
    topk10-float32   a tenth of the values: 0.525 n bytes, 7.6 times fewer than float32.
    topk1-float32    a hundredth: 0.08 n bytes, 50 times fewer.

Stich, Cordonnier, Jaggi 2018 (NeurIPS, "Sparsified SGD with memory", definition 2.1 and algorithm 1). The result is
biased: without the memory of what was left out (`feedback.py`) it need not converge, so a sender must keep it.
||decoded|| <= ||x||.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import FormatError
from holdfast.update.codec import Floats, check_length, check_values

Positions = NDArray[np.int64]


class TopKCodec:
    """Keeps one value in `share`, exactly."""

    norm_growth = 1.0
    keeps_residual = True

    def __init__(self, name: str, share: int) -> None:
        self.name = name
        self._share = share

    def encoded_size(self, count: int) -> int:
        kept = self._kept(count)
        return _positions_size(count, kept) + 4 * kept

    def encode(self, values: Floats, rng: np.random.Generator) -> bytes:
        del rng
        check_values(values)
        positions = _largest(values, self._kept(values.size))
        return _write_positions(positions, values.size) + values[positions].astype("<f4").tobytes()

    def decode(self, data: bytes, count: int) -> Floats:
        check_length(self.name, data, self.encoded_size(count), count)
        kept = self._kept(count)
        size = _positions_size(count, kept)
        positions = self._read_positions(data[:size], count, kept)
        values: Floats = np.zeros(count, dtype=np.float32)
        values[positions] = np.frombuffer(data, dtype="<f4", offset=size)
        check_values(values)
        return values

    def _kept(self, count: int) -> int:
        return -(-count // self._share)

    def _read_positions(self, data: bytes, count: int, kept: int) -> Positions:
        if not _is_bitmap(count, kept):
            positions = np.frombuffer(data, dtype="<u4").astype(np.int64)
            if positions.size and (np.any(np.diff(positions) <= 0) or positions[-1] >= count):
                raise FormatError(f"{self.name}: positions must rise and lie below {count}")
            return positions
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
        if int(bits.sum()) != kept or np.any(bits[count:]):
            raise FormatError(f"{self.name}: the bitmap must mark {kept} of the first {count} bits and no other")
        return np.flatnonzero(bits)


def _largest(values: Floats, kept: int) -> Positions:
    """The positions of the `kept` largest magnitudes, rising; of equal magnitudes the earlier ones."""
    if kept == 0:
        return np.empty(0, dtype=np.int64)
    magnitude = np.abs(values)
    threshold = np.partition(magnitude, values.size - kept)[values.size - kept]
    above = np.flatnonzero(magnitude > threshold)
    equal = np.flatnonzero(magnitude == threshold)[: kept - above.size]
    return np.sort(np.concatenate([above, equal]))


def _is_bitmap(count: int, kept: int) -> bool:
    return -(-count // 8) <= 4 * kept


def _positions_size(count: int, kept: int) -> int:
    return min(-(-count // 8), 4 * kept)


def _write_positions(positions: Positions, count: int) -> bytes:
    if not _is_bitmap(count, positions.size):
        return positions.astype("<u4").tobytes()
    bits = np.zeros(count, dtype=np.uint8)
    bits[positions] = 1
    return np.packbits(bits, bitorder="little").tobytes()
