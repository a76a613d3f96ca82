"""What a cheat would do with an evidence file: change a byte, or change a figure and sign everything again.

The forger here has no key of the real principals and knows the format well: the forged file is consistent in itself.
Only whoever compares its keys with the real ones can tell.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence

from holdfast.errors import EvidenceError
from holdfast.evidence.entries import ENROLMENT, REPORT, UPDATE, Entry, parse_entries
from holdfast.evidence.layout import KIND, LEDGER, ClaimedKey, Evidence, read_evidence, write_evidence
from holdfast.evidence.tally import compute_figures
from holdfast.trust.checkpoint import Checkpoint, sign_checkpoint
from holdfast.trust.envelope import Envelope, sign_envelope
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.trust.merkle import MerkleTree, leaf_hash
from holdfast.wire.container import read_spans
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.messages import EnrolmentRecord, LedgerEntry, UpdateRecord, UpdateStatement


def flip_a_byte(data: bytes, offset: int) -> bytes:
    """The same bytes with one bit of the byte at `offset` turned over."""
    changed = bytearray(data)
    changed[offset] ^= 1 << secrets.randbelow(8)
    return bytes(changed)


def file_at(data: bytes, offset: int) -> str:
    """The name of the file inside an evidence container that the byte at `offset` belongs to, or "container"."""
    spans = read_spans(data, KIND)
    return next((span.name for span in spans if span.offset <= offset < span.offset + span.size_bytes), "container")


def forge(data: bytes) -> bytes:
    """Make every device's last evaluation look perfect, and sign all of it again with keys of our own.

    Raises:
        EvidenceError: the file holds no evaluation to make up.
    """
    evidence = read_evidence(data)
    entries = tuple(parse_entries(evidence.entries))
    keys = {entry.subject: PrivateKey.generate(ED25519) for entry in entries if entry.kind == ENROLMENT}
    forged = [_forged_entry(raw, entry, keys) for raw, entry in zip(evidence.entries, entries, strict=True)]
    if all(
        new == old for new, old, entry in zip(forged, evidence.entries, entries, strict=True) if entry.kind == UPDATE
    ):
        raise EvidenceError("the evidence holds no evaluation that could be forged; run a federated round first")
    return write_evidence(_signed_again(evidence, forged))


def _forged_entry(raw: bytes, entry: Entry, keys: dict[str, PrivateKey]) -> bytes:
    logged = from_bytes(LedgerEntry, raw)
    if isinstance(entry.fact, EnrolmentRecord):
        spki = keys[entry.subject].public_key.spki_der
        return to_bytes(
            dataclasses.replace(logged, body=to_bytes(dataclasses.replace(entry.fact, report_key_spki=spki)))
        )
    if entry.kind == REPORT and entry.envelope is not None:
        return to_bytes(dataclasses.replace(logged, body=to_bytes(_resign(entry.envelope, keys[entry.subject]))))
    if entry.update is not None and isinstance(entry.fact, UpdateStatement) and entry.envelope is not None:
        statement = _made_perfect(entry.fact)
        envelope = sign_envelope(entry.envelope.payload_type, to_bytes(statement), keys[statement.device_id])
        record: UpdateRecord = dataclasses.replace(entry.update, envelope=to_bytes(envelope))
        return to_bytes(dataclasses.replace(logged, body=to_bytes(record)))
    return raw


def _made_perfect(statement: UpdateStatement) -> UpdateStatement:
    if "correct" not in statement.metrics:
        return statement
    return dataclasses.replace(statement, metrics={**statement.metrics, "correct": statement.metrics["count"]})


def _resign(envelope: Envelope, key: PrivateKey) -> Envelope:
    return sign_envelope(envelope.payload_type, envelope.payload, key)


def _signed_again(evidence: Evidence, forged: Sequence[bytes]) -> Evidence:
    ledger = PrivateKey.generate(ED25519)
    tree = MerkleTree()
    for entry in forged:
        tree.append(leaf_hash(entry))
    checkpoint = sign_checkpoint(Checkpoint(evidence.origin, tree.size, tree.root()), evidence.origin, ledger)
    keys = [
        ClaimedKey(claimed.role, claimed.name, ledger.public_key) if claimed.role == LEDGER else claimed
        for claimed in evidence.keys
    ]
    promises = [to_bytes(_resign(from_bytes(Envelope, promise), ledger)) for promise in evidence.promises]
    return dataclasses.replace(
        evidence,
        checkpoint=checkpoint,
        entries=tuple(forged),
        proofs=tuple(tree.inclusion_proof(index, tree.size) for index in range(tree.size)),
        keys=tuple(keys),
        figures=compute_figures(tuple(parse_entries(tuple(forged)))).to_json(),
        scorecard=None,
        promises=tuple(promises),
    )
