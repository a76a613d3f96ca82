"""Steps over the devices: who was enrolled with which key, and that each one's chain of records is whole.

A chain is whole when every record is signed by the key enrolled for its epoch, `seq` counts from 1, and `prev_hash` is
the SHA-256 of the payload before. A tombstone stands for several dropped numbers up to its own, and names the hash
that the next record follows. A fork that the coordinator recorded as such is evidence about the device, not a fault of
the log: it is counted in the figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from holdfast.errors import FormatError, TrustError
from holdfast.evidence.entries import ENROLMENT, FORK, REPORT, Entry
from holdfast.evidence.findings import Finding, Place
from holdfast.trust.envelope import verify_envelope
from holdfast.trust.keys import PublicKey
from holdfast.wire.messages import NO_HASH, REPORT_TYPE, EnrolmentRecord, Report

DeviceKeys = Mapping[tuple[str, int], tuple[int, PublicKey]]  # (device, key epoch) -> (entry of enrolment, key)


def check_enrolments(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Every enrolment names a readable key, and no device got two keys for one epoch or changed its site."""
    seen: set[tuple[str, int]] = set()
    sites: dict[str, str] = {}
    for entry in entries:
        if not isinstance(entry.fact, EnrolmentRecord):
            continue
        record = entry.fact
        place = Place(entry=entry.index, device_id=record.device_id, field="report_key_spki")
        try:
            PublicKey.from_spki_der(record.report_key_spki)
        except (FormatError, TrustError) as error:
            yield Finding("enrolments", str(error), place)
        if (record.device_id, record.key_epoch) in seen:
            yield Finding("enrolments", f"a second key for key epoch {record.key_epoch}", place)
        if sites.setdefault(record.device_id, record.site) != record.site:
            message = f"device moved from site {sites[record.device_id]!r} to {record.site!r}"
            yield Finding("enrolments", message, Place(entry=entry.index, device_id=record.device_id, field="site"))
        seen.add((record.device_id, record.key_epoch))


def device_keys(entries: Sequence[Entry]) -> DeviceKeys:
    """The enrolled report keys; the first one of each epoch counts, unreadable ones are left out."""
    keys: dict[tuple[str, int], tuple[int, PublicKey]] = {}
    for entry in entries:
        if entry.kind == ENROLMENT and isinstance(entry.fact, EnrolmentRecord):
            try:
                key = PublicKey.from_spki_der(entry.fact.report_key_spki)
            except (FormatError, TrustError):
                continue  # check_enrolments names it; records by it find no key below
            keys.setdefault((entry.fact.device_id, entry.fact.key_epoch), (entry.index, key))
    return keys


def sites_of(entries: Sequence[Entry]) -> dict[str, str]:
    """Device id to site, by the enrolments."""
    return {fact.device_id: fact.site for fact in (e.fact for e in entries) if isinstance(fact, EnrolmentRecord)}


def check_chains(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Every record is signed by its device, and every device's chain is whole."""
    keys = device_keys(entries)
    by_device: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.kind in (REPORT, FORK) and isinstance(entry.fact, Report):
            yield from _check_signature(entry, entry.fact, keys)
            by_device.setdefault(entry.fact.device_id, []).append(entry)
    for device_id in sorted(by_device):
        yield from _check_chain(device_id, by_device[device_id])


def _check_signature(entry: Entry, report: Report, keys: DeviceKeys) -> Iterator[Finding]:
    place = Place(entry=entry.index, device_id=report.device_id, seq=report.seq, field="signature")
    enrolled = keys.get((report.device_id, report.key_epoch))
    if enrolled is None or entry.envelope is None:
        yield Finding("chains", f"no key is enrolled for key epoch {report.key_epoch} of this device", place)
        return
    if enrolled[0] > entry.index:
        yield Finding("chains", f"the record stands before the enrolment of its key (entry {enrolled[0]})", place)
    try:
        verify_envelope(entry.envelope, REPORT_TYPE, (enrolled[1],))
    except TrustError as error:
        yield Finding("chains", str(error), place)


def first_seq(report: Report) -> int:
    """The first number that a record stands for; a tombstone stands for several."""
    return report.seq if report.tombstone is None else report.tombstone.first_seq


def link_after(entry: Entry, report: Report) -> bytes:
    """What the next record names as its predecessor: the dropped record, where a tombstone stands in its place."""
    return entry.payload_sha256 if report.tombstone is None else report.tombstone.last_hash


def _check_chain(device_id: str, entries: Sequence[Entry]) -> Iterator[Finding]:
    """`entries`: the records and forks of one device in the order of the log, which is the order of its chain."""
    head_seq, link = 0, NO_HASH
    known: dict[int, Entry] = {}
    for entry in entries:
        report = entry.fact
        if not isinstance(report, Report):
            continue
        other = known.get(report.seq)
        message, field = _fault(entry, report, (head_seq, link), other)
        if message:
            yield Finding("chains", message, Place(entry=entry.index, device_id=device_id, seq=report.seq, field=field))
        if entry.kind == REPORT and report.seq > head_seq:
            head_seq, link = report.seq, link_after(entry, report)
            known[report.seq] = entry


def _fault(entry: Entry, report: Report, head: tuple[int, bytes], other: Entry | None) -> tuple[str, str]:
    """(what is wrong with this link, in which field); two empty texts if it holds."""
    (head_seq, link), first = head, first_seq(report)
    continues = first == head_seq + 1 and report.prev_hash == link
    if entry.kind == FORK:
        same = other is not None and other.payload_sha256 == entry.payload_sha256
        return ("recorded as a fork, but the chain goes on with it", "seq") if continues or same else ("", "")
    if other is not None:
        differs = other.payload_sha256 != entry.payload_sha256
        what = "equivocation: the device signed two records" if differs else "the log holds the record twice"
        return f"{what} with this number; the other is entry {other.index}", "seq"
    if report.tombstone is not None and not first <= report.tombstone.last_seq == report.seq:
        return "the tombstone does not stand for the records up to its own number", "tombstone"
    if report.seq <= head_seq or first <= head_seq:
        return f"it stands after number {head_seq}: out of order", "seq"
    if first > head_seq + 1:
        return f"records {head_seq + 1} to {first - 1} are missing, and no tombstone stands for them", "seq"
    if not continues:
        return f"it follows {report.prev_hash.hex()[:16]}, the record before it is {link.hex()[:16]}", "prev_hash"
    return "", ""
