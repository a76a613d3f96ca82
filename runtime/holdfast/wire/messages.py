"""What travels, as frozen dataclasses: the only form in which rooms hand messages to each other.

Field names and order are those of the `.proto` files; `convert.py` goes by names. Hashes are 32 raw bytes (`bytes`)
or 64 hexadecimal digits (`str`, for identities that people read). An empty tuple or mapping stands for "none".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast.trust.envelope import Envelope

NO_HASH = bytes(32)  # prev_hash of a device's first record

REPORT_TYPE = "application/vnd.holdfast.report.v1+protobuf"
PROMISE_TYPE = "application/vnd.holdfast.promise.v1+protobuf"
ASSIGNMENT_TYPE = "application/vnd.holdfast.assignment.v1+protobuf"
OFFER_TYPE = "application/vnd.holdfast.offer.v1+protobuf"
UPDATE_TYPE = "application/vnd.holdfast.update.v1+protobuf"
# documents of people: DSSE JSON files
POLICY_TYPE = "application/vnd.holdfast.policy.v1+json"
APPROVAL_TYPE = "application/vnd.holdfast.approval.v1+json"
MANIFEST_TYPE = "application/vnd.holdfast.manifest.v1+json"

Counts = Mapping[str, int]


# enrolment


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    token_id: str
    token_secret: str
    csr_pem: str
    report_key_spki: bytes
    flower_public_key: str
    nonce: bytes
    proof: bytes
    device_name: str = ""


@dataclass(frozen=True, slots=True)
class EnrolResponse:
    device_id: str
    certificate_pem: str
    authority_pem: str
    trust_domain: str
    device_address: str
    ledger_key_spki: bytes
    run_key_spki: bytes
    assignment_key_spki: bytes
    server_utc_ns: int
    checkpoint: str
    site: str


@dataclass(frozen=True, slots=True)
class RenewRequest:
    device_id: str
    csr_pem: str
    nonce: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class RenewResponse:
    certificate_pem: str
    authority_pem: str
    server_utc_ns: int


# a device's records


@dataclass(frozen=True, slots=True)
class ClockReading:
    utc_ns: int
    monotonic_ns: int
    offset_ns: int = 0


@dataclass(frozen=True, slots=True)
class Histogram:
    """OTLP exponential histogram; `holdfast.sketch.histogram` computes with it."""

    scale: int = 5
    zero_count: int = 0
    offset: int = 0
    counts: tuple[int, ...] = ()
    count: int = 0
    sum: float = 0.0
    minimum: float = 0.0
    maximum: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelWindow:
    model: str
    version: str
    bundle_digest: str
    outcomes: Counts
    latency_s: Histogram


@dataclass(frozen=True, slots=True)
class OperationalWindow:
    start_utc_ns: int
    end_utc_ns: int
    models: tuple[ModelWindow, ...] = ()
    cpu_s: float = 0.0
    memory_bytes: int = 0
    bytes_out: Counts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BinCounts:
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DataWindow:
    start_utc_ns: int
    end_utc_ns: int
    model: str
    bundle_digest: str
    rows: int
    features: Mapping[str, BinCounts] = field(default_factory=dict)
    confidence: BinCounts = BinCounts()
    predictions: Counts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoundAnswer:
    """A device's yes or no. `offer_sha256` is empty for a run that nobody signed an offer for (a stock Flower app)."""

    offer_sha256: bytes
    run_id: str
    round: int
    accepted: bool
    reason_code: str = ""
    policy_rule: str = ""


@dataclass(frozen=True, slots=True)
class PolicyChange:
    policy_digest: str
    number: int
    document: bytes


@dataclass(frozen=True, slots=True)
class ModelEvent:
    model: str
    bundle_digest: str
    event: str
    reason: str = ""
    assignment_number: int = 0


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Stands in the chain in the place of records `first_seq` to `last_seq`, which were dropped before they were sent.

    The record that carries it has `seq == last_seq` and the `prev_hash` of record `first_seq`; the record after it
    names `last_hash` (the hash of the dropped record `last_seq`) as its `prev_hash`. Outcomes and latencies are the
    exact sums over what was dropped.
    """

    first_seq: int
    last_seq: int
    last_hash: bytes
    outcomes: Counts = field(default_factory=dict)
    latency_s: Histogram = Histogram()


ReportBody = OperationalWindow | DataWindow | RoundAnswer | PolicyChange | ModelEvent | Tombstone


@dataclass(frozen=True, slots=True)
class Report:
    """One link of a device's chain; exactly one of the bodies is present."""

    device_id: str
    key_epoch: int
    boot_id: str
    seq: int
    prev_hash: bytes
    clock: ClockReading
    policy_digest: str = ""
    operational: OperationalWindow | None = None
    data: DataWindow | None = None
    round_answer: RoundAnswer | None = None
    policy_change: PolicyChange | None = None
    model_event: ModelEvent | None = None
    tombstone: Tombstone | None = None


# device listener


@dataclass(frozen=True, slots=True)
class ReportRequest:
    records: tuple[Envelope, ...]


@dataclass(frozen=True, slots=True)
class InclusionPromise:
    device_id: str
    head_seq: int
    head_hash: bytes
    tree_size: int


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    head_seq: int
    head_hash: bytes
    promise: Envelope | None = None
    checkpoint: str = ""
    retry_after_ms: int = 0
    refused_code: str = ""
    refused_reason: str = ""


@dataclass(frozen=True, slots=True)
class CheckInRequest:
    active: Mapping[str, str]
    policy_digest: str
    assignment_number: int
    agent_version: str


@dataclass(frozen=True, slots=True)
class AssignmentDelivery:
    assignment: Envelope
    approvals: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckInResponse:
    server_utc_ns: int
    assignments: tuple[AssignmentDelivery, ...] = ()
    offers: tuple[Envelope, ...] = ()
    checkpoint: str = ""
    next_check_in_ms: int = 0


@dataclass(frozen=True, slots=True)
class Assignment:
    device_id: str
    number: int
    model: str
    bundle_digest: str
    blob_sha256: str
    blob_size_bytes: int
    issued_utc_ns: int
    expires_utc_ns: int


@dataclass(frozen=True, slots=True)
class FetchRequest:
    blob_sha256: str
    offset: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class FetchResponse:
    total_bytes: int
    data: bytes


@dataclass(frozen=True, slots=True)
class FleetCallRequest:
    superlink: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class FleetCallResponse:
    status: int
    headers: Mapping[str, str]
    body: bytes


# rounds


@dataclass(frozen=True, slots=True)
class PrivacyTerms:
    clip_norm: float = 0.0
    noise_std: float = 0.0
    epsilon: float = 0.0
    minimum_cohort: int = 1


@dataclass(frozen=True, slots=True)
class RoundOffer:
    run_id: str
    round: int
    rounds: int
    purpose: str
    handler: str
    model: str
    base_bundle_digest: str
    weights_sha256: bytes
    weights_size_bytes: int
    epochs: int
    batch: int
    learning_rate: float
    seed: int
    max_samples: int
    codec: str
    privacy: PrivacyTerms
    issued_utc_ns: int
    deadline_utc_ns: int
    proximal_mu: float = 0.0
    gradient_clip: float = 0.0


@dataclass(frozen=True, slots=True)
class UpdateStatement:
    device_id: str
    offer_sha256: bytes
    run_id: str
    round: int
    codec: str
    array_sha256: bytes
    array_size_bytes: int
    sample_count: int
    metrics: Mapping[str, float]
    clip_norm_applied: float = 0.0
    noise_std_applied: float = 0.0


# ledger


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    kind: str
    subject: str
    recorded_utc_ns: int
    body: bytes


@dataclass(frozen=True, slots=True)
class EnrolmentRecord:
    device_id: str
    site: str
    report_key_spki: bytes
    key_epoch: int
    token_id: str
    certificate_sha256: str


@dataclass(frozen=True, slots=True)
class BundleRecord:
    manifest: bytes
    signature: bytes
    blob_sha256: str


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    envelope: bytes
    accepted: bool
    reason_code: str = ""
    measured_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class RoundRecord:
    run_id: str
    round: int
    outcome: str
    reason: str
    invited: tuple[str, ...]
    accepted: tuple[str, ...]
    contributed: tuple[str, ...]
    weights_sha256: bytes
    sample_count: int
