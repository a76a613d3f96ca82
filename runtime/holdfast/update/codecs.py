"""Every codec there is, and which of them may meet which aggregation. The table in the docs is made from here.

To add a codec: a class with its byte format in a `codec_<family>.py`, its place in `CODECS`, a line in `LEGALITY` per
aggregation it may meet, golden vectors. The bytes under a name never change: a better format is a new name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from holdfast.errors import FormatError, RoundError
from holdfast.update.codec import Codec
from holdfast.update.codec_block import Int4BlockCodec, Int8BlockCodec
from holdfast.update.codec_fixed_point import FixedPointCodec
from holdfast.update.codec_float import Float16Codec, Float32Codec
from holdfast.update.codec_topk import TopKCodec

# how updates are combined: the mean weighted by sample counts, of updates that the coordinator sees one by one, or a
# sum of masked integers of which it only ever sees the total
WEIGHTED_MEAN, SECURE_SUM = "weighted_mean", "secure_sum"

TOP_TENTH, TOP_HUNDREDTH = TopKCodec("topk10-float32", 10), TopKCodec("topk1-float32", 100)
_ALL: tuple[Codec, ...] = (
    Float32Codec(),
    Float16Codec(),
    Int8BlockCodec(),
    Int4BlockCodec(),
    TOP_TENTH,
    TOP_HUNDREDTH,
    FixedPointCodec(),
)
CODECS: Mapping[str, Codec] = MappingProxyType({codec.name: codec for codec in _ALL})

_UNBIASED = "unbiased, so the mean over clients keeps its expectation (FedPAQ)"
_REPAID = "biased; what a device leaves out it adds to its next update"
# Which codec may meet which aggregation, with the reason a reader needs. A pair that is not listed is refused.
LEGALITY: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        (Float32Codec.name, WEIGHTED_MEAN): "exact",
        (Float16Codec.name, WEIGHTED_MEAN): "rounded to nearest: 2^-11 of each value, far below the noise of a round",
        (Int8BlockCodec.name, WEIGHTED_MEAN): _UNBIASED,
        (Int4BlockCodec.name, WEIGHTED_MEAN): _UNBIASED,
        (TOP_TENTH.name, WEIGHTED_MEAN): _REPAID,
        (TOP_HUNDREDTH.name, WEIGHTED_MEAN): _REPAID,
        (FixedPointCodec.name, WEIGHTED_MEAN): "rounded to 2^-21; the sum of the levels is exact in any order",
        (FixedPointCodec.name, SECURE_SUM): "integers under one scale: masks cancel modulo 2^32 and sums are exact",
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
