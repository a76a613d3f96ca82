"""Approvals: a person's signed yes or no to one bundle, by its digest.

A document is a DSSE envelope in JSON with the payload type of approvals. Of several documents by one key the newest
counts; a standing "no" of any of the keys outweighs every "yes"; what has expired does not count. The author never
approves alone: a yes by a key that signed the bundle is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.bundle.documents import Fields, canonical_json, check_canonical, parse_json, utc_text
from holdfast.errors import TrustError
from holdfast.trust.envelope import from_json, sign_envelope, to_json, verify_envelope
from holdfast.trust.keys import PublicKey, Signer
from holdfast.wire.limits import MAX_DOCUMENT_BYTES
from holdfast.wire.messages import APPROVAL_TYPE

SCHEMA = "holdfast/approval/v1"
APPROVE, REJECT = "approve", "reject"


@dataclass(frozen=True, slots=True)
class Approval:
    """What a person says about the bundle `subject_digest`. Times have whole seconds."""

    subject_digest: str
    decision: str
    role: str
    issued_utc_ns: int
    expires_utc_ns: int
    comment: str = ""


@dataclass(frozen=True, slots=True)
class VerifiedApproval:
    """An approval whose signature holds, and the key that made it."""

    approval: Approval
    key_id: str


def sign_approval(approval: Approval, signer: Signer) -> bytes:
    """The signed document, ready to be written to a file.

    Raises:
        BundleError: a value out of its bounds.
    """
    payload = _encode(approval)
    _decode(payload)
    return to_json(sign_envelope(APPROVAL_TYPE, payload, signer))


def verify_approval(document: bytes, keys: Iterable[PublicKey]) -> VerifiedApproval:
    """Check that one of `keys` signed this document. Says nothing about its expiry or its decision.

    Raises:
        TrustError: none of the keys did.
        FormatError: not such a document.
    """
    if len(document) > MAX_DOCUMENT_BYTES:
        raise TrustError(f"approval has {len(document)} bytes, at most {MAX_DOCUMENT_BYTES} are read")
    verified = verify_envelope(from_json(document), APPROVAL_TYPE, keys)
    if len(verified.key_ids) != 1:
        raise TrustError("approval bears several signatures; every person signs a document of their own")
    return VerifiedApproval(_decode(verified.payload), verified.key_ids[0])


def standing_decisions(
    approvals: Iterable[VerifiedApproval], digest: str, now_utc_ns: int
) -> tuple[VerifiedApproval, ...]:
    """Per key its newest decision on `digest`, without those that have expired; sorted by key id."""
    newest: dict[str, VerifiedApproval] = {}
    for each in approvals:
        before = newest.get(each.key_id)
        if each.approval.subject_digest != digest:
            continue
        if before is None or _rank(each) > _rank(before):
            newest[each.key_id] = each
    return tuple(newest[key] for key in sorted(newest) if newest[key].approval.expires_utc_ns > now_utc_ns)


def check_approved(
    approvals: Iterable[VerifiedApproval], digest: str, *, author_key_ids: Iterable[str], now_utc_ns: int
) -> VerifiedApproval:
    """The approval that lets `digest` go on.

    Raises:
        TrustError: a person said no, or nobody but the author said yes, or it has expired.
    """
    known = tuple(approvals)
    standing = standing_decisions(known, digest, now_utc_ns)
    for each in standing:
        if each.approval.decision == REJECT:
            raise TrustError(f"bundle {digest[:16]} was rejected by key {each.key_id[:16]} ({each.approval.role})")
    authors = set(author_key_ids)
    for each in standing:
        if each.key_id not in authors:
            return each
    if standing:
        raise TrustError(f"bundle {digest[:16]} is approved by its own author only; another person must approve it")
    if standing_decisions(known, digest, 0):
        raise TrustError(f"the approval of bundle {digest[:16]} has expired; have it approved again")
    raise TrustError(f"bundle {digest[:16]} has no approval by a trusted key; run: holdfast approve {digest[:16]}...")


def _rank(each: VerifiedApproval) -> tuple[int, bool]:
    # of two in the same second the "no" counts
    return each.approval.issued_utc_ns, each.approval.decision == REJECT


def _encode(approval: Approval) -> bytes:
    return canonical_json(
        {
            "schema": SCHEMA,
            "subject_digest": approval.subject_digest,
            "decision": approval.decision,
            "role": approval.role,
            "issued": utc_text(approval.issued_utc_ns),
            "expires": utc_text(approval.expires_utc_ns),
            "comment": approval.comment,
        }
    )


def _decode(payload: bytes) -> Approval:
    keys = {"schema", "subject_digest", "decision", "role", "issued", "expires", "comment"}
    fields = Fields(parse_json(payload, "approval", MAX_DOCUMENT_BYTES), keys, "approval")
    fields.choice("schema", (SCHEMA,))
    approval = Approval(
        subject_digest=fields.sha256("subject_digest"),
        decision=fields.choice("decision", (APPROVE, REJECT)),
        role=fields.text("role", minimum=1, maximum=128),
        issued_utc_ns=fields.utc_ns("issued"),
        expires_utc_ns=fields.utc_ns("expires"),
        comment=fields.text("comment"),
    )
    check_canonical(payload, _encode(approval), "approval")
    return approval
