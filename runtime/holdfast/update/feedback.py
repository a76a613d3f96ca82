"""Error feedback: what a codec leaves out of one update is added to the sender's next one. Pure.

    v = clip(delta + residual);  sent = decode(encode(v));  next residual = v - sent

(Stich, Cordonnier, Jaggi 2018, algorithm 1; Karimireddy et al. 2019, arXiv 1901.09847, algorithm 2.) The sum is clipped
before it is split, which the papers don't do: ||next residual|| <= ||v|| <= clip, so a memory that grew in rounds with
few uploads cannot come out as one large step. Where nothing is clipped, sent + next residual = delta + residual exactly
for top-k, which copies the values it sends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.errors import RoundError
from holdfast.update.bounds import clip_to_norm
from holdfast.update.codec import Codec, Floats


@dataclass(frozen=True, slots=True)
class SplitUpdate:
    """An encoded update, and what it left out: float32[count], to be kept until the next update is made."""

    data: bytes
    residual: Floats


def encode_with_residual(
    delta: Floats, residual: Floats, *, codec: Codec, clip: float, rng: np.random.Generator
) -> SplitUpdate:
    """Add what was left out before, clip, encode, and say what is left out now.

    Args:
        delta, residual: float32[n], finite, not modified. A first update has a residual of zeros.
        clip: the largest 2-norm of the sum; 0: it is not clipped.

    Raises: RoundError: the residual is of another length. FormatError: NaN or infinity.
    """
    if residual.shape != delta.shape:
        raise RoundError(f"the residual has {residual.size} values, the update {delta.size}; it is of another model")
    whole: Floats = delta + residual
    if clip > 0:
        whole = clip_to_norm(whole, clip).delta
    data = codec.encode(whole, rng)
    return SplitUpdate(data, whole - codec.decode(data, delta.size))
