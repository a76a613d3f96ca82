"""May this device run this bundle? The three conditions, as pure functions of documents, pinned keys and the time.

1. A signed assignment for this very device, with a newer number than any before (from the coordinator).
2. An approval by a pinned person's key that is not the author's, and no standing rejection (from a person).
3. An author's signature, or a run-signed candidate within its author's envelope (from the author).

The first two are checked before a byte is fetched, the third on the bytes; no single key suffices. The expiry of an
assignment only raises an alarm: it never stops what is served, and never keeps an approved model away.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.bundle.approval import VerifiedApproval, check_approved, verify_approval
from holdfast.bundle.documents import SHA256
from holdfast.bundle.manifest import NAME
from holdfast.bundle.verify import AncestorWeights, Trust, UnverifiedBundle, VerifiedBundle, verify_bundle
from holdfast.errors import FormatError, TrustError
from holdfast.trust.envelope import verify_envelope
from holdfast.trust.keys import PublicKey
from holdfast.wire.convert import from_bytes
from holdfast.wire.limits import MAX_BLOB_BYTES, MAX_STATEMENT_BYTES
from holdfast.wire.messages import ASSIGNMENT_TYPE, Assignment, AssignmentDelivery

MAX_APPROVALS = 64  # of one delivery; each costs a verification
EXPIRED = "assignment-expired"


@dataclass(frozen=True, slots=True)
class ActivationTrust:
    """Who this device is, and the keys it pinned when it enrolled."""

    device_id: str
    authors: tuple[PublicKey, ...]
    approvers: tuple[PublicKey, ...]
    run_keys: tuple[PublicKey, ...]
    assignment_keys: tuple[PublicKey, ...]

    @property
    def bundles(self) -> Trust:
        """Whose bundles may be trusted."""
        return Trust(self.authors, self.run_keys)


@dataclass(frozen=True, slots=True)
class Order:
    """An assignment that holds, with the approvals that came with it; `alarms` are for people to look at."""

    assignment: Assignment
    approvals: tuple[VerifiedApproval, ...]
    alarms: tuple[str, ...] = ()


def read_assignment(delivery: AssignmentDelivery, trust: ActivationTrust) -> Assignment:
    """The assignment of a delivery, if the pinned assignment key signed it for this device.

    Raises:
        TrustError: another key, or another device.
        FormatError: not an assignment, or with values out of bounds.
    """
    verified = verify_envelope(delivery.assignment, ASSIGNMENT_TYPE, trust.assignment_keys)
    assignment = from_bytes(Assignment, verified.payload, max_bytes=MAX_STATEMENT_BYTES)
    if assignment.device_id != trust.device_id:
        raise TrustError(f"assignment is for device {assignment.device_id!r}, this is {trust.device_id!r}")
    _check_bounds(assignment)
    return assignment


def check_order(
    delivery: AssignmentDelivery, trust: ActivationTrust, *, installed_number: int, now_utc_ns: int
) -> Order:
    """Conditions 1 and 2, before anything is fetched. Approvals by keys that are not pinned are passed over.

    Raises:
        TrustError: the assignment is not ours or not newer, or nobody who may approve has approved.
        FormatError: a document is damaged.
    """
    assignment = read_assignment(delivery, trust)
    if assignment.number <= installed_number:
        raise TrustError(f"assignment number {assignment.number} is not newer than {installed_number}, the last one")
    if len(delivery.approvals) > MAX_APPROVALS:
        raise FormatError(f"assignment came with {len(delivery.approvals)} approvals, at most {MAX_APPROVALS} are read")
    approvals = tuple(each for each in (_known(document, trust) for document in delivery.approvals) if each is not None)
    # the author is not known before the bundle is read; check_activation asks again with their keys
    check_approved(approvals, assignment.bundle_digest, author_key_ids=(), now_utc_ns=now_utc_ns)
    alarms = (EXPIRED,) if assignment.expires_utc_ns <= now_utc_ns else ()
    return Order(assignment, approvals, alarms)


def check_activation(
    order: Order,
    bundle: UnverifiedBundle,
    trust: ActivationTrust,
    *,
    now_utc_ns: int,
    ancestor_weights: AncestorWeights,
) -> VerifiedBundle:
    """Condition 3, and that the fetched bundle is the one that was assigned and approved, by somebody but its author.

    Args:
        ancestor_weights: gives `weights.bin` of a candidate's ancestor; called only when all signatures hold.
    Raises:
        TrustError, FormatError: naming what does not hold.
    """
    assignment = order.assignment
    if bundle.digest != assignment.bundle_digest:
        raise TrustError(f"fetched bundle is {bundle.digest[:16]}, assigned was {assignment.bundle_digest[:16]}")
    if bundle.manifest.name != assignment.model:
        raise TrustError(f"bundle is of model {bundle.manifest.name!r}, assigned was {assignment.model!r}")
    verified = verify_bundle(bundle, trust.bundles, ancestor_weights=ancestor_weights)
    check_approved(order.approvals, bundle.digest, author_key_ids=verified.author_key_ids, now_utc_ns=now_utc_ns)
    return verified


def _check_bounds(assignment: Assignment) -> None:
    # these become file names: nothing but a hash or a plain name may pass
    for digest in (assignment.bundle_digest, assignment.blob_sha256):
        if SHA256.fullmatch(digest) is None:
            raise FormatError(f"assignment names {digest[:80]!r}, expected a SHA-256 in hexadecimal digits")
    if NAME.fullmatch(assignment.model) is None:
        raise FormatError(f"assignment names the model {assignment.model[:100]!r}; use A-Z a-z 0-9 . _ -, at most 128")
    if not 0 < assignment.blob_size_bytes <= MAX_BLOB_BYTES:
        raise FormatError(f"assignment names a blob of {assignment.blob_size_bytes} bytes, at most {MAX_BLOB_BYTES}")


def _known(document: bytes, trust: ActivationTrust) -> VerifiedApproval | None:
    try:
        return verify_approval(document, trust.approvers)
    except TrustError:
        return None  # somebody else's, perhaps of another site; it neither helps nor harms
