"""Steps over what persons and the coordinator signed: bundles, approvals, assignments, offers, updates, policies.

Each is checked against the claimed key of its role, and against what must have come before it in the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from holdfast.errors import FormatError, TrustError
from holdfast.evidence.chains import device_keys, sites_of
from holdfast.evidence.entries import APPROVAL, FORK, Entry
from holdfast.evidence.findings import Finding, Place
from holdfast.evidence.layout import APPROVER, ASSIGNMENT, AUTHOR, RUN, SITE, Evidence, parse_json
from holdfast.evidence.models import logged_models
from holdfast.trust.envelope import Envelope, from_json, verify_envelope
from holdfast.trust.keys import PublicKey
from holdfast.wire.limits import MAX_DOCUMENT_BYTES
from holdfast.wire.messages import (
    APPROVAL_TYPE,
    ASSIGNMENT_TYPE,
    MANIFEST_TYPE,
    OFFER_TYPE,
    POLICY_TYPE,
    UPDATE_TYPE,
    Assignment,
    BundleRecord,
    PolicyChange,
    Report,
    RoundOffer,
    UpdateStatement,
)


def check_bundles(evidence: Evidence, entries: Sequence[Entry]) -> Iterator[Finding]:
    """Every manifest is signed by a claimed author; or by the run key, and then it descends from a bundle before it."""
    authors = evidence.keys_of(AUTHOR)
    keys = (*authors, *evidence.keys_of(RUN))
    author_ids = {key.key_id for key in authors}
    first_logged = {model.digest: model for model in logged_models(entries)}
    for model in first_logged.values():
        envelope, parent = entries[model.entry].envelope, first_logged.get(model.parent_digest)
        by_author = envelope is not None and any(s.key_id in author_ids for s in envelope.signatures)
        if not by_author and (parent is None or parent.entry >= model.entry):
            message = (
                f"{model.label} is not signed by an author, and its lineage names no bundle that was logged before"
            )
            yield Finding("bundles", message, Place(entry=model.entry, field="lineage"))
    for entry in entries:
        if isinstance(entry.fact, BundleRecord):
            yield from _signed("bundles", entry, MANIFEST_TYPE, keys)
            if entry.envelope is not None and entry.envelope.payload != entry.fact.manifest:
                message = "the signature is over another manifest"
                yield Finding("bundles", message, Place(entry=entry.index, field="manifest"))


def check_approvals(evidence: Evidence, entries: Sequence[Entry]) -> Iterator[Finding]:
    """Every approval is signed by a claimed approver and says what it is about."""
    for entry in entries:
        if entry.kind == APPROVAL and entry.envelope is not None:
            yield from _signed("approvals", entry, APPROVAL_TYPE, evidence.keys_of(APPROVER))
            try:
                approval_of(entry.envelope)
            except FormatError as error:
                yield Finding("approvals", str(error), Place(entry=entry.index, field="payload"))


def approval_of(envelope: Envelope) -> tuple[str, str]:
    """(subject digest, decision) of an approval. Raises FormatError if it has none."""
    document = parse_json(envelope.payload, "approval", max_bytes=MAX_DOCUMENT_BYTES)
    if not isinstance(document, dict):
        raise FormatError("approval is not a JSON object")
    subject, decision = document.get("subject_digest"), document.get("decision")
    if not isinstance(subject, str) or not isinstance(decision, str):
        raise FormatError("approval lacks the texts subject_digest and decision")
    return subject, decision


def check_assignments(evidence: Evidence, entries: Sequence[Entry]) -> Iterator[Finding]:
    """Every assignment is signed, numbered upwards, and of a bundle that was logged and approved before."""
    bundles: set[str] = set()
    approved: set[str] = set()
    numbers: dict[str, int] = {}
    for entry in entries:
        if isinstance(entry.fact, BundleRecord):
            bundles.add(hashlib.sha256(entry.fact.manifest).hexdigest())
        elif entry.kind == APPROVAL and entry.envelope is not None:
            approved |= _approved(entry.envelope)
        elif isinstance(entry.fact, Assignment):
            yield from _signed("assignments", entry, ASSIGNMENT_TYPE, evidence.keys_of(ASSIGNMENT))
            yield from _check_assignment(entry.index, entry.fact, bundles & approved, numbers)
            numbers[entry.fact.device_id] = entry.fact.number


def _approved(envelope: Envelope) -> set[str]:
    try:
        subject, decision = approval_of(envelope)
    except FormatError:
        return set()  # check_approvals names it
    return {subject} if decision == "approve" else set()


def _check_assignment(
    index: int, assignment: Assignment, allowed: set[str], numbers: dict[str, int]
) -> Iterator[Finding]:
    device_id, before = assignment.device_id, numbers.get(assignment.device_id, 0)
    if assignment.bundle_digest not in allowed:
        message = f"bundle {assignment.bundle_digest[:16]} was not logged and approved before it was assigned"
        yield Finding("assignments", message, Place(entry=index, device_id=device_id, field="bundle_digest"))
    if assignment.number <= before:
        message = f"number {assignment.number} follows number {before}; numbers only rise"
        yield Finding("assignments", message, Place(entry=index, device_id=device_id, field="number"))


def check_offers(evidence: Evidence, entries: Sequence[Entry]) -> Iterator[Finding]:
    """Every round offer is signed by the run key, and no device answered an offer that the log does not hold."""
    offers: set[bytes] = set()
    for entry in entries:
        if isinstance(entry.fact, RoundOffer):
            yield from _signed("offers", entry, OFFER_TYPE, evidence.keys_of(RUN))
            offers.add(entry.payload_sha256)
    for entry in entries:
        report = entry.fact
        if not isinstance(report, Report) or report.round_answer is None or entry.kind == FORK:
            continue
        offer = report.round_answer.offer_sha256
        if offer and offer not in offers:
            message = f"the device answered the offer {offer.hex()[:16]}, which the log does not hold"
            place = Place(entry=entry.index, device_id=report.device_id, seq=report.seq, field="offer_sha256")
            yield Finding("offers", message, place)


def check_updates(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Every accepted update is signed by a key of the device it names, and answers a logged offer within its bounds."""
    keys: dict[str, list[PublicKey]] = {}
    for (device_id, _), (_, key) in device_keys(entries).items():
        keys.setdefault(device_id, []).append(key)
    offers: dict[bytes, RoundOffer] = {}
    for entry in entries:
        if isinstance(entry.fact, RoundOffer):
            offers[entry.payload_sha256] = entry.fact
        elif isinstance(entry.fact, UpdateStatement) and entry.update is not None and entry.update.accepted:
            # one that was not accepted may be anything, that is why it was not; figures leave it out
            yield from _signed("updates", entry, UPDATE_TYPE, keys.get(entry.fact.device_id, ()))
            yield from _check_update(entry.index, entry.fact, offers.get(entry.fact.offer_sha256))


def _check_update(index: int, statement: UpdateStatement, offer: RoundOffer | None) -> Iterator[Finding]:
    place = Place(entry=index, device_id=statement.device_id, field="offer_sha256")
    if offer is None:
        yield Finding("updates", "it answers an offer that the log does not hold before it", place)
        return
    if (offer.run_id, offer.round) != (statement.run_id, statement.round):
        message = f"it says round {statement.round} of {statement.run_id!r}, its offer is for another"
        yield Finding("updates", message, place)
    if offer.max_samples and statement.sample_count > offer.max_samples:
        message = f"accepted with {statement.sample_count} samples, its offer allows {offer.max_samples}"
        yield Finding("updates", message, Place(entry=index, device_id=statement.device_id, field="sample_count"))


def check_policies(evidence: Evidence, entries: Sequence[Entry]) -> Iterator[Finding]:
    """Every policy that a device put in force is signed by the key of its own site, and numbers only rise."""
    sites = sites_of(entries)
    numbers: dict[str, int] = {}
    for entry in entries:
        report = entry.fact
        if not isinstance(report, Report) or report.policy_change is None or entry.kind == FORK:
            continue
        change, site = report.policy_change, sites.get(report.device_id, "")
        place = Place(entry=entry.index, device_id=report.device_id, seq=report.seq, field="policy_change")
        keys = [claimed.key for claimed in evidence.keys if claimed.role == SITE and claimed.name in (site, "")]
        try:
            payload = verify_envelope(from_json(change.document), POLICY_TYPE, keys).payload
        except (FormatError, TrustError) as error:
            yield Finding("policies", f"policy {change.number} of site {site!r}: {error}", place)
            continue
        yield from (Finding("policies", message, place) for message in _policy_faults(payload, change, site))
        if change.number <= numbers.get(report.device_id, 0):
            yield Finding("policies", f"number {change.number} is not above the one before; numbers only rise", place)
        numbers[report.device_id] = change.number


def _policy_faults(payload: bytes, change: PolicyChange, site: str) -> Iterator[str]:
    digest = hashlib.sha256(payload).hexdigest()
    if digest != change.policy_digest:
        yield f"the record names policy {change.policy_digest[:16]}, the document is {digest[:16]}"
    try:
        document = parse_json(payload, "policy", max_bytes=MAX_DOCUMENT_BYTES)
    except FormatError as error:
        yield str(error)
        return
    said = (document.get("site"), document.get("number")) if isinstance(document, dict) else (None, None)
    if said != (site, change.number):
        yield f"the document is number {said[1]} of site {said[0]!r}, expected number {change.number} of {site!r}"


def _signed(step: str, entry: Entry, payload_type: str, keys: Sequence[PublicKey]) -> Iterator[Finding]:
    place = Place(entry=entry.index, field="signature")
    if entry.envelope is None:
        yield Finding(step, "it carries no signature", place)
        return
    try:
        verify_envelope(entry.envelope, payload_type, keys)
    except TrustError as error:
        yield Finding(step, str(error), place)
