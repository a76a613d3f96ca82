"""Steps over the log as a whole: its checkpoint, its root, every inclusion proof, and the promises made from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from holdfast.errors import FormatError, TrustError
from holdfast.evidence.chains import link_after
from holdfast.evidence.entries import REPORT, Entry
from holdfast.evidence.findings import Finding, Place
from holdfast.evidence.layout import CHECKPOINT, LEDGER, PROMISES, PROOFS, Evidence
from holdfast.trust.checkpoint import Checkpoint, verify_checkpoint
from holdfast.trust.envelope import Envelope, verify_envelope
from holdfast.trust.merkle import MerkleTree, leaf_hash, verify_inclusion
from holdfast.wire.convert import from_bytes
from holdfast.wire.messages import PROMISE_TYPE, InclusionPromise, Report


def checkpoint_of(evidence: Evidence) -> Checkpoint:
    """The checkpoint, signed by the claimed ledger key.

    Raises:
        TrustError: there is not exactly one ledger key, or its signature does not hold.
        FormatError: it is no checkpoint.
    """
    keys = evidence.keys_of(LEDGER)
    if len(keys) != 1:
        raise TrustError(f"evidence claims {len(keys)} ledger keys, expected one")
    return verify_checkpoint(evidence.checkpoint, evidence.origin, keys[0])


def check_checkpoint(evidence: Evidence) -> Iterator[Finding]:
    """The signature of the ledger key holds, and names the log and size that the file says."""
    try:
        checkpoint = checkpoint_of(evidence)
    except (FormatError, TrustError) as error:
        yield Finding("checkpoint", str(error), Place(CHECKPOINT))
        return
    if (checkpoint.origin, checkpoint.size) != (evidence.origin, evidence.tree_size):
        message = f"it is of {checkpoint.size} entries of {checkpoint.origin!r}, "
        message += f"the file says {evidence.tree_size} entries of {evidence.origin!r}"
        yield Finding("checkpoint", message, Place(CHECKPOINT))


def check_inclusion(evidence: Evidence) -> Iterator[Finding]:
    """Every entry is under the signed root, by its own proof: this names the entry that was changed or moved."""
    checkpoint = checkpoint_of(evidence)
    for index, (entry, proof) in enumerate(zip(evidence.entries, evidence.proofs, strict=True)):
        try:
            verify_inclusion(leaf_hash(entry), index, evidence.tree_size, proof, checkpoint.root)
        except (TrustError, FormatError) as error:
            yield Finding("inclusion", str(error), Place(PROOFS, entry=index))


def check_root(evidence: Evidence) -> Iterator[Finding]:
    """The root over all entries, computed again, is the signed one; and the stored proofs are the ones it gives."""
    checkpoint = checkpoint_of(evidence)
    tree = MerkleTree(leaf_hash(entry) for entry in evidence.entries)
    if tree.size != checkpoint.size or tree.root() != checkpoint.root:
        message = f"the {tree.size} entries have root {tree.root().hex()}, "
        message += f"the checkpoint signs {checkpoint.root.hex()} over {checkpoint.size}"
        yield Finding("root", message, Place(CHECKPOINT))
        return
    for index, proof in enumerate(evidence.proofs):
        if proof != tree.inclusion_proof(index, tree.size):
            yield Finding("root", f"the stored proof is not that of entry {index}", Place(PROOFS, entry=index))


def check_promises(evidence: Evidence, entries: Sequence[Entry]) -> Iterator[Finding]:
    """Every promise is signed by the ledger key, and the record it promised is in the log, early enough."""
    reports = {
        (entry.fact.device_id, entry.fact.seq): entry
        for entry in entries
        if entry.kind == REPORT and isinstance(entry.fact, Report)
    }
    for number, data in enumerate(evidence.promises):
        try:
            envelope = from_bytes(Envelope, data)
            payload = verify_envelope(envelope, PROMISE_TYPE, evidence.keys_of(LEDGER)).payload
            promise = from_bytes(InclusionPromise, payload)
        except (TrustError, FormatError) as error:
            yield Finding("promises", str(error), Place(PROMISES, field=f"promise {number}"))
            continue
        yield from _check_promise(promise, reports.get((promise.device_id, promise.head_seq)))


def _check_promise(promise: InclusionPromise, entry: Entry | None) -> Iterator[Finding]:
    place = Place(PROMISES, device_id=promise.device_id, seq=promise.head_seq)
    if promise.head_seq == 0:  # nothing was promised: the device had sent no record yet
        return
    if entry is None:
        yield Finding("promises", "a record that the ledger promised to hold is not in it", place)
    elif not isinstance(entry.fact, Report) or link_after(entry, entry.fact) != promise.head_hash:
        yield Finding("promises", "the log holds another record than the one that was promised", place)
    elif entry.index >= promise.tree_size:
        message = f"promised to be among {promise.tree_size} entries, it stands at {entry.index}"
        yield Finding("promises", message, place)
