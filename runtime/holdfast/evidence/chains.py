"""Steps over the devices: who was enrolled with which key, and that each one's chain of records is whole.

A chain is whole when every record is signed by the key enrolled for its epoch, `seq` counts from 1, and `prev_hash` is
the SHA-256 of the payload before. A tombstone stands in the place of dropped records, bears the number of the last one
and names the hash that the next record follows. A fork that the coordinator recorded as such is evidence about the
device, not a fault of the log: it is counted in the figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.errors import FormatError, TrustError
from holdfast.evidence.entries import ENROLMENT, FORK, REPORT, Entry
from holdfast.evidence.findings import Finding, Place
from holdfast.trust.envelope import verify_envelope
from holdfast.trust.keys import PublicKey
from holdfast.wire.messages import NO_HASH, REPORT_TYPE, EnrolmentRecord, Report

DeviceKeys = Mapping[tuple[str, int], tuple[int, PublicKey]]  # (device, key epoch) -> (entry of enrolment, key)


def check_enrolments(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Every enrolment names a readable key, and no device got two keys for one epoch or changed its site."""
    seen: dict[tuple[str, int], bytes] = {}
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
        if seen.setdefault((record.device_id, record.key_epoch), record.report_key_spki) != record.report_key_spki:
            yield Finding("enrolments", f"a second key for key epoch {record.key_epoch}", place)
        if sites.setdefault(record.device_id, record.site) != record.site:
            message = f"device moved from site {sites[record.device_id]!r} to {record.site!r}"
            yield Finding("enrolments", message, Place(entry=entry.index, device_id=record.device_id, field="site"))


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
    """The first number that a record stands for: several, where it is a tombstone."""
    return report.seq if report.tombstone is None else report.tombstone.first_seq


def link_after(entry: Entry, report: Report) -> bytes:
    """What the next record names as its predecessor: the last dropped record, where a tombstone stands in its place."""
    return entry.payload_sha256 if report.tombstone is None else report.tombstone.last_hash


@dataclass(slots=True)
class _Chain:
    """The end of one device's chain while the log is read, and the records by their number."""

    head_seq: int = 0
    link: bytes = NO_HASH
    known: dict[int, Entry] = field(default_factory=dict)

    def take(self, entry: Entry, report: Report) -> tuple[str, str]:
        """Add a record; (what is wrong with it, in which field), two empty texts if nothing is."""
        other = self.known.get(report.seq)
        if other is not None:
            differs = other.payload_sha256 != entry.payload_sha256
            what = "equivocation: the device signed two records" if differs else "the log holds the record twice"
            return f"{what} with this number; the other is entry {other.index}", "seq"
        fault = self._fault(report)
        self.known[report.seq] = entry
        if report.seq > self.head_seq:
            self.head_seq, self.link = report.seq, link_after(entry, report)
        return fault

    def continues(self, report: Report) -> bool:
        """Whether this record would be the next of the chain."""
        return first_seq(report) == self.head_seq + 1 and report.prev_hash == self.link

    def _fault(self, report: Report) -> tuple[str, str]:
        first, tombstone = first_seq(report), report.tombstone
        if tombstone is not None and not tombstone.first_seq <= tombstone.last_seq == report.seq:
            return "the tombstone does not stand for records up to its own number", "tombstone"
        if first <= self.head_seq:
            return f"it stands after number {self.head_seq}: out of order", "seq"
        if first > self.head_seq + 1:
            return f"records {self.head_seq + 1} to {first - 1} are missing, and no tombstone stands for them", "seq"
        if report.prev_hash != self.link:
            return (
                f"it follows {report.prev_hash.hex()[:16]}, the record before it is {self.link.hex()[:16]}",
                "prev_hash",
            )
        return "", ""


def _check_chain(device_id: str, entries: Sequence[Entry]) -> Iterator[Finding]:
    """`entries`: the records and forks of one device in the order of the log, which is the order of its chain."""
    chain = _Chain()
    for entry in entries:
        report = entry.fact
        if not isinstance(report, Report):
            continue
        if entry.kind == FORK:
            other = chain.known.get(report.seq)
            same = other is not None and other.payload_sha256 == entry.payload_sha256
            regular = same or (other is None and chain.continues(report))
            message, where = ("recorded as a fork, but the chain goes on with it", "seq") if regular else ("", "")
        else:
            message, where = chain.take(entry, report)
        if message:
            yield Finding("chains", message, Place(entry=entry.index, device_id=device_id, seq=report.seq, field=where))
