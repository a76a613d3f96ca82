"""The log's entries as typed records: parsed, in order, nothing verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from holdfast.errors import FormatError
from holdfast.trust.envelope import Envelope, from_json
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.limits import MAX_DOCUMENT_BYTES, MAX_REPORT_BYTES
from holdfast.wire.messages import (
    Assignment,
    BundleRecord,
    EnrolmentRecord,
    LedgerEntry,
    Report,
    RoundOffer,
    RoundRecord,
    UpdateRecord,
    UpdateStatement,
)

ENROLMENT, REPORT, BUNDLE, APPROVAL = "enrolment", "report", "bundle", "approval"
ASSIGNMENT, OFFER, UPDATE, ROUND, FORK = "assignment", "offer", "update", "round", "fork"
KINDS = (ENROLMENT, REPORT, BUNDLE, APPROVAL, ASSIGNMENT, OFFER, UPDATE, ROUND, FORK)

Statement = Report | Assignment | RoundOffer | UpdateStatement
Fact = Statement | EnrolmentRecord | BundleRecord | RoundRecord | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `fact` is what it says; `envelope` carries its signatures, where it has any.

    For an approval `fact` is None: its document is the envelope's payload. For an update `fact` is the device's
    statement and `update` what the coordinator found. A fork is a second record of a number that a device used twice.
    """

    index: int
    kind: str
    subject: str
    recorded_utc_ns: int
    fact: Fact
    envelope: Envelope | None = None
    update: UpdateRecord | None = None

    @property
    def payload_sha256(self) -> bytes:
        return hashlib.sha256(self.envelope.payload).digest() if self.envelope else b""


def parse_entry(index: int, data: bytes) -> Entry:
    """Read one leaf of the log.

    Raises:
        FormatError: it is not a LedgerEntry, or its body is not what its kind says.
    """
    raw = from_bytes(LedgerEntry, data)
    if to_bytes(raw) != data:
        raise FormatError("ledger entry has fields that this version does not know; use a newer holdfast")
    reader = _READERS.get(raw.kind)
    # a kind that is not known here is proven to be in the log, and nothing else: no figure uses it
    fact, envelope, update = reader(raw.body) if reader else (None, None, None)
    return Entry(index, raw.kind, raw.subject, raw.recorded_utc_ns, fact, envelope, update)


def parse_entries(entries: Sequence[bytes]) -> Iterator[Entry]:
    """All entries in order.

    Raises:
        FormatError: as `parse_entry`, with the position.
    """
    for index, data in enumerate(entries):
        try:
            yield parse_entry(index, data)
        except FormatError as error:
            raise FormatError(f"entry {index}: {error}") from error


_Read = tuple[Fact, Envelope | None, UpdateRecord | None]


def _report(body: bytes) -> _Read:
    envelope = from_bytes(Envelope, body, max_bytes=2 * MAX_REPORT_BYTES)
    return from_bytes(Report, envelope.payload, max_bytes=MAX_REPORT_BYTES), envelope, None


def _assignment(body: bytes) -> _Read:
    envelope = from_bytes(Envelope, body)
    return from_bytes(Assignment, envelope.payload), envelope, None


def _offer(body: bytes) -> _Read:
    envelope = from_bytes(Envelope, body)
    return from_bytes(RoundOffer, envelope.payload), envelope, None


def _update(body: bytes) -> _Read:
    record = from_bytes(UpdateRecord, body)
    try:
        envelope = from_bytes(Envelope, record.envelope)
        return from_bytes(UpdateStatement, envelope.payload), envelope, record
    except FormatError:
        if record.accepted:
            raise
        return None, None, record  # refused, perhaps because it was no statement at all


def _bundle(body: bytes) -> _Read:
    record = from_bytes(BundleRecord, body)
    return record, from_json(record.signature), None


def _approval(body: bytes) -> _Read:
    if len(body) > MAX_DOCUMENT_BYTES:
        raise FormatError(f"approval has {len(body)} bytes, at most {MAX_DOCUMENT_BYTES} are read")
    return None, from_json(body), None


_READERS: Mapping[str, Callable[[bytes], _Read]] = {
    ENROLMENT: lambda body: (from_bytes(EnrolmentRecord, body), None, None),
    REPORT: _report,
    FORK: _report,
    BUNDLE: _bundle,
    APPROVAL: _approval,
    ASSIGNMENT: _assignment,
    OFFER: _offer,
    UPDATE: _update,
    ROUND: lambda body: (from_bytes(RoundRecord, body), None, None),
}
