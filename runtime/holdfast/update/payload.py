"""The bytes of one update: made on the device, opened by the receiver, with what both sides must agree on.

Pure: arrays and bytes in, values out. Signing and the wire message are done elsewhere; a statement about an update
carries the fields of `UpdatePayload` except the bytes themselves.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import RoundError
from holdfast.update.bounds import check_decoded_norm, clip_to_norm
from holdfast.update.codecs import codec_named

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class UpdatePayload:
    """An encoded delta. `norm_before` is the norm of what training gave, `clip` the bound it was scaled to."""

    codec: str
    data: bytes
    sha256: bytes
    count: int
    clip: float
    norm_before: float

    @property
    def size_bytes(self) -> int:
        return len(self.data)


def make_payload(delta: Floats, *, codec: str, clip: float, rng: np.random.Generator) -> UpdatePayload:
    """Clip, then encode a delta (float32[n], finite, not modified).

    Raises: FormatError: unknown codec, NaN or infinity. RoundError: `clip` is not positive.
    """
    clipped = clip_to_norm(delta, clip)
    data = codec_named(codec).encode(clipped.delta, rng)
    return UpdatePayload(
        codec=codec,
        data=data,
        sha256=hashlib.sha256(data).digest(),
        count=delta.size,
        clip=clip,
        norm_before=clipped.norm_before,
    )


def open_payload(data: bytes, *, sha256: bytes, codec: str, count: int, clip: float) -> Floats:
    """Check an update against its signed statement and the offer, and decode it.

    Args:
        data: what was received.
        sha256: 32 bytes, from the signed statement.
        codec, clip: from the offer, not from the sender.
        count: how many values the layout's trainable entries have.

    Returns: float32[count], finite, norm within what the clip and the codec allow.
    Raises: RoundError: other bytes than stated, or a norm above its bound. FormatError: the bytes don't decode.
    """
    if not hmac.compare_digest(hashlib.sha256(data).digest(), sha256):
        raise RoundError("the update's bytes are not those of its signed statement")
    chosen = codec_named(codec)
    delta = chosen.decode(data, count)
    check_decoded_norm(delta, chosen, clip)
    return delta
