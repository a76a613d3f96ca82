"""Journals for tests, and a look at their chains."""

from __future__ import annotations

import hashlib
from pathlib import Path

from holdfast.clock import Clock
from holdfast.outbox.journal import DEFAULT_MAX_BYTES, Journal
from holdfast.sketch.histogram import ExponentialHistogram
from holdfast.trust.envelope import Envelope, sign_envelope, verify_envelope
from holdfast.trust.keys import PrivateKey, PublicKey
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.histograms import to_message
from holdfast.wire.messages import (
    NO_HASH,
    PROMISE_TYPE,
    REPORT_TYPE,
    Acknowledgement,
    InclusionPromise,
    ModelWindow,
    OperationalWindow,
    Report,
)

DEVICE_ID = "d-1"


def make_window(requests: int = 3, latency_s: float = 0.01) -> OperationalWindow:
    histogram = ExponentialHistogram()
    for number in range(requests):
        histogram.add(latency_s * (number + 1))
    model = ModelWindow("digits", "1", "ab" * 32, {"ok": requests}, to_message(histogram.snapshot()))
    return OperationalWindow(1, 2, (model,), bytes_out={"report": 10})


def open_journal(path: Path, key: PrivateKey, clock: Clock, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Journal:
    return Journal(path, key, DEVICE_ID, 1, clock, lambda: "cd" * 32, max_bytes=max_bytes)


def read_chain(records: tuple[Envelope, ...], key: PublicKey, seq: int = 0, link: bytes = NO_HASH) -> list[Report]:
    """Verify a chain that continues after (seq, link); fails on any gap, fork or bad signature."""
    reports = []
    for envelope in records:
        payload = verify_envelope(envelope, REPORT_TYPE, [key]).payload
        report = from_bytes(Report, payload)
        first = report.tombstone.first_seq if report.tombstone else report.seq
        assert (first, report.prev_hash) == (seq + 1, link)
        seq = report.seq
        link = report.tombstone.last_hash if report.tombstone else hashlib.sha256(payload).digest()
        reports.append(report)
    return reports


def make_acknowledgement(
    seq: int, link: bytes, ledger: PrivateKey, device_id: str = DEVICE_ID, **fields: object
) -> Acknowledgement:
    promise = sign_envelope(PROMISE_TYPE, to_bytes(InclusionPromise(device_id, seq, link, 1)), ledger)
    return Acknowledgement(seq, link, promise=promise, **fields)  # type: ignore[arg-type]  # checked by the class
