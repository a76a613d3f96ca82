"""Collects an evidence file from the ledger: the whole log at one checkpoint, its proofs and its figures.

While it reads, the log may grow; what is appended after the checkpoint is left out. The form of the file and what it
proves are `holdfast.evidence`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from holdfast.errors import EvidenceError
from holdfast.evidence.entries import parse_entries
from holdfast.evidence.figures import Figures
from holdfast.evidence.layout import LEDGER, MAX_ENTRIES, ClaimedKey, Evidence
from holdfast.evidence.tally import compute_figures
from holdfast.trust.checkpoint import verify_checkpoint
from holdfast.trust.merkle import MerkleTree, leaf_hash
from holdfast_federation.ledger.log import Ledger

Answer = Callable[[Figures], bytes]  # figures to scorecard.json


def collect_evidence(
    ledger: Ledger, keys: Sequence[ClaimedKey], *, exported_utc_ns: int, scorecard: Answer | None = None
) -> Evidence:
    """The evidence of everything in `ledger` now.

    Args:
        keys: the public keys of run, assignment, sites, authors and approvers; the ledger's own is added.
        scorecard: makes `scorecard.json` from the figures.

    Raises:
        EvidenceError: the log is larger than an evidence file may be, or lacks entries.
        FormatError: an entry cannot be read.
    """
    checkpoint = ledger.checkpoint()
    size = verify_checkpoint(checkpoint, ledger.origin, ledger.public_key).size
    if size > MAX_ENTRIES:
        raise EvidenceError(f"the log has {size} entries, an evidence file holds at most {MAX_ENTRIES}")
    entries = tuple(data for _, data in ledger.entries(0, size))
    if len(entries) != size:
        raise EvidenceError(f"the log has {len(entries)} of its {size} entries; restore the database from a backup")
    tree = MerkleTree(leaf_hash(entry) for entry in entries)
    figures = compute_figures(tuple(parse_entries(entries)))
    return Evidence(
        origin=ledger.origin,
        exported_utc_ns=exported_utc_ns,
        tree_size=size,
        checkpoint=checkpoint,
        entries=entries,
        proofs=tuple(tree.inclusion_proof(index, size) for index in range(size)),
        keys=(ClaimedKey(LEDGER, "", ledger.public_key), *keys),
        figures=figures.to_json(),
        scorecard=scorecard(figures) if scorecard else None,
    )
