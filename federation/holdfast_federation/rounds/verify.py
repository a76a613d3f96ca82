"""Checks one update: whose it is, for which offer, and that it keeps every bound. Pure.

The order is: signature by the device that was ADDRESSED, then the statement against the offer, then the bytes against
the statement, then the numbers. The first thing that does not hold is the reason; it goes into the ledger with the
statement, so that a device can be asked about it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import FormatError, RoundError, TrustError
from holdfast.trust.envelope import Envelope, verify_envelope
from holdfast.trust.keys import PublicKey
from holdfast.update.bounds import check_decoded_norm, measured_norm
from holdfast.update.codecs import codec_named
from holdfast.wire.convert import from_bytes
from holdfast.wire.limits import MAX_STATEMENT_BYTES
from holdfast.wire.messages import UPDATE_TYPE, RoundOffer, UpdateStatement
from holdfast_federation.rounds.grid import Reply

SIGNATURE, OTHER_DEVICE, OTHER_OFFER, OTHER_ROUND, SAMPLE_COUNT, CODEC, SIZE, HASH, VALUES, NORM, CLIP, METRICS = (
    "signature",
    "other_device",
    "other_offer",
    "other_round",
    "sample_count",
    "codec",
    "size",
    "hash",
    "values",
    "norm",
    "clip",
    "metrics",
)
MAX_METRICS = 16

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Expected:
    """What the coordinator knows about the reply it waits for. `count`: values of an update of this model."""

    device_id: str
    report_key: PublicKey
    offer: RoundOffer
    offer_sha256: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found. `delta` is None for an evaluation, and whenever `reason_code` is not empty."""

    reason_code: str
    statement: UpdateStatement | None = None
    envelope: bytes = b""
    delta: Floats | None = field(default=None, compare=False)
    norm: float = 0.0

    @property
    def accepted(self) -> bool:
        return not self.reason_code

    @property
    def metrics(self) -> Mapping[str, float]:
        return {} if self.statement is None else self.statement.metrics


def check_update(reply: Reply, expected: Expected) -> Finding:
    """Judge one reply of a device. Never raises for what somebody else sent."""
    if reply.error:
        return Finding(reply.error)
    try:
        envelope = from_bytes(Envelope, reply.statement, max_bytes=MAX_STATEMENT_BYTES)
        verified = verify_envelope(envelope, UPDATE_TYPE, [expected.report_key])
        statement = from_bytes(UpdateStatement, verified.payload)
    except (TrustError, FormatError):
        return Finding(SIGNATURE)
    reason = _statement_reason(statement, expected)
    if reason:
        return Finding(reason, statement, reply.statement)
    if expected.offer.handler == "evaluate":
        return Finding(SIZE if reply.update else "", statement, reply.statement)
    return _check_array(reply, statement, expected)


def _statement_reason(statement: UpdateStatement, expected: Expected) -> str:
    offer = expected.offer
    if statement.device_id != expected.device_id:
        return OTHER_DEVICE
    if statement.offer_sha256 != expected.offer_sha256:
        return OTHER_OFFER
    if (statement.run_id, statement.round) != (offer.run_id, offer.round):
        return OTHER_ROUND
    if not 1 <= statement.sample_count <= offer.max_samples:
        return SAMPLE_COUNT
    if len(statement.metrics) > MAX_METRICS or not all(math.isfinite(v) for v in statement.metrics.values()):
        return METRICS
    if offer.handler == "train" and statement.codec != offer.codec:
        return CODEC
    clip = offer.privacy.clip_norm
    if offer.handler == "train" and clip > 0 and not 0 < statement.clip_norm_applied <= clip:
        return CLIP
    return ""


def _check_array(reply: Reply, statement: UpdateStatement, expected: Expected) -> Finding:
    offer, codec = expected.offer, codec_named(expected.offer.codec)
    refused = Finding(SIZE, statement, reply.statement)
    if not len(reply.update) == statement.array_size_bytes == codec.encoded_size(expected.count):
        return refused
    if hashlib.sha256(reply.update).digest() != statement.array_sha256:
        return Finding(HASH, statement, reply.statement)
    try:
        delta = codec.decode(reply.update, expected.count)
    except FormatError:
        return Finding(VALUES, statement, reply.statement)
    norm = measured_norm(delta)
    if offer.privacy.clip_norm > 0:
        try:
            check_decoded_norm(delta, codec, offer.privacy.clip_norm)
        except RoundError:
            return Finding(NORM, statement, reply.statement, norm=norm)
    return Finding("", statement, reply.statement, delta, norm)
