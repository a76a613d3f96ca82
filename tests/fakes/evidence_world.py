"""A small world that signs everything a log can hold: two sites, two devices, one federated run, two evaluations.

`World()` is honest; tests then change one thing in `world.log` (or the signer of one thing) and `export` again. The
log is sealed (checkpoint, proofs, figures) at export, so that a change is not found by a mere hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.evidence.entries import parse_entries
from holdfast.evidence.layout import ClaimedKey, Evidence, canonical_json, write_evidence
from holdfast.evidence.roots import Root
from holdfast.evidence.scorecard import evaluate, parse_definition
from holdfast.evidence.tally import compute_figures
from holdfast.sketch.histogram import ExponentialHistogram
from holdfast.trust.checkpoint import Checkpoint, sign_checkpoint
from holdfast.trust.envelope import Envelope, sign_envelope, to_json
from holdfast.trust.keys import ECDSA_P256, ED25519, PrivateKey
from holdfast.trust.merkle import MerkleTree, leaf_hash
from holdfast.wire.convert import to_bytes
from holdfast.wire.messages import (
    APPROVAL_TYPE,
    ASSIGNMENT_TYPE,
    MANIFEST_TYPE,
    NO_HASH,
    OFFER_TYPE,
    POLICY_TYPE,
    PROMISE_TYPE,
    REPORT_TYPE,
    UPDATE_TYPE,
    Assignment,
    BundleRecord,
    ClockReading,
    EnrolmentRecord,
    Histogram,
    InclusionPromise,
    LedgerEntry,
    ModelWindow,
    OperationalWindow,
    PolicyChange,
    PrivacyTerms,
    Report,
    ReportBody,
    RoundAnswer,
    RoundOffer,
    RoundRecord,
    Tombstone,
    UpdateRecord,
    UpdateStatement,
)

ORIGIN = "plant7.example/ledger"
RUN_ID = "run-1"
START_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z
BODY_FIELDS = {
    OperationalWindow: "operational",
    RoundAnswer: "round_answer",
    PolicyChange: "policy_change",
    Tombstone: "tombstone",
}

DEFINITION = {
    "apiVersion": "holdfast/v1",
    "kind": "Scorecard",
    "metadata": {"name": "digits-pilot"},
    "spec": {
        "purpose": "read digits where they are written",
        "owner": "head of operations",
        "kpis": {
            "accuracy": {
                "definition": "share of the devices' hold-out samples that are recognised",
                "unit": "share",
                "direction": "higher",
                "baseline": {"source": "evaluation/@first/accuracy"},
                "source": "evaluation/@last/accuracy",
                "target": 0.8,
            },
            "p99": {
                "definition": "99th percentile of the latency over the fleet",
                "unit": "s",
                "direction": "lower",
                "baseline": {"value": 0.2},
                "source": "fleet/latency/p99_s",
                "target": 0.1,
            },
        },
        "value": {
            "formula": "(accuracy - accuracy_baseline) * items * gain - cost",
            "unit": "EUR a year",
            "threshold": 0,
            "inputs": {
                "items": {"value": 100_000, "assumption": "letters a year"},
                "gain": {"value": 2.0, "assumption": "EUR for a letter that nobody has to read"},
                "cost": {"value": 5_000, "assumption": "EUR a year for four devices"},
            },
        },
    },
}


def keys_of_all() -> dict[str, PrivateKey]:
    """New private keys of every principal, by `<role>` or `<role>-<name>`, and of the devices."""
    names = ("ledger", "run", "assignment", "site-north", "site-south", "approver", "device-n1", "device-s1")
    return {name: PrivateKey.generate(ED25519) for name in names} | {"author": PrivateKey.generate(ECDSA_P256)}


@dataclass
class World:
    """An honest log, built at once. Change `log` and call `export`."""

    keys: dict[str, PrivateKey] = field(default_factory=keys_of_all)
    log: list[bytes] = field(default_factory=list)
    promises: list[bytes] = field(default_factory=list)
    heads: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    version_1: str = ""
    version_2: str = ""

    def __post_init__(self) -> None:
        if self.log:
            return
        self.enrol("n1", "north")
        self.enrol("s1", "south")
        self.policy("n1", "north")
        self.policy("s1", "south")
        self.version_1 = self.bundle("1", weights_of(0), "author")
        self.approve(self.version_1)
        self.assign("n1", self.version_1, 1)
        self.assign("s1", self.version_1, 1)
        self.window("n1", {"ok": 40, "HF-REQUEST-003": 2}, [0.010, 0.012, 0.020])
        self.window("s1", {"ok": 60}, [0.030, 0.040])
        self.train()
        self.judge(weights_of(0), {"n1": 70, "s1": 60})
        self.judge(weights_of(2), {"n1": 95, "s1": 90})
        self.version_2 = self.bundle("2", weights_of(2), "run", run_id=RUN_ID, parent=self.version_1)
        self.approve(self.version_2)
        self.assign("n1", self.version_2, 2)
        self.window("n1", {"ok": 10}, [0.011])
        self.promise("n1")

    # what happens in the world, each a few entries of the log

    def add(self, kind: str, subject: str, body: bytes) -> int:
        """Log one entry; returns its position."""
        entry = LedgerEntry(kind, subject, START_NS + len(self.log) * 1_000_000_000, body)
        self.log.append(to_bytes(entry))
        return len(self.log) - 1

    def enrol(self, device_id: str, site: str, *, epoch: int = 1) -> int:
        spki = self.keys[f"device-{device_id}"].public_key.spki_der
        record = EnrolmentRecord(device_id, site, spki, epoch, "token-1", "ab" * 32)
        return self.add("enrolment", device_id, to_bytes(record))

    def record(
        self, device_id: str, body: ReportBody, *, seq: int | None = None, prev_hash: bytes | None = None
    ) -> Envelope:
        """The next record of a device's chain, signed, not logged; the head moves on."""
        head_seq, head_hash = self.heads.get(device_id, (0, NO_HASH))
        number = head_seq + 1 if seq is None else seq
        link = head_hash if prev_hash is None else prev_hash
        clock = ClockReading(START_NS, 5)
        report = Report(device_id, 1, "boot-1", number, link, clock, **{BODY_FIELDS[type(body)]: body})  # type: ignore[arg-type]
        payload = to_bytes(report)
        self.heads[device_id] = (number, hashlib.sha256(payload).digest())
        return sign_envelope(REPORT_TYPE, payload, self.keys[f"device-{device_id}"])

    def report(self, device_id: str, body: ReportBody) -> int:
        return self.add("report", device_id, to_bytes(self.record(device_id, body)))

    def window(self, device_id: str, outcomes: Mapping[str, int], latencies_s: Sequence[float]) -> int:
        return self.report(device_id, operational_window(outcomes, latencies_s))

    def policy(self, device_id: str, site: str, *, number: int = 1, signer: str = "") -> int:
        payload = canonical_json({"schema": "holdfast/policy/v1", "site": site, "number": number})
        document = to_json(sign_envelope(POLICY_TYPE, payload, self.keys[signer or f"site-{site}"]))
        return self.report(device_id, PolicyChange(hashlib.sha256(payload).hexdigest(), number, document))

    def bundle(self, version: str, weights: bytes, signer: str, *, run_id: str = "", parent: str = "") -> str:
        files = {"weights.bin": {"sha256": weights.hex(), "size_bytes": 40}}
        lineage = {"run_id": run_id, "parent_digest": parent} if run_id else None
        manifest = canonical_json({"name": "digits", "version": version, "files": files, "lineage": lineage})
        signature = to_json(sign_envelope(MANIFEST_TYPE, manifest, self.keys[signer]))
        digest = hashlib.sha256(manifest).hexdigest()
        self.add("bundle", digest, to_bytes(BundleRecord(manifest, signature, "cd" * 32)))
        return digest

    def approve(self, digest: str, *, decision: str = "approve", signer: str = "approver") -> int:
        payload = canonical_json({"schema": "holdfast/approval/v1", "subject_digest": digest, "decision": decision})
        return self.add("approval", digest, to_json(sign_envelope(APPROVAL_TYPE, payload, self.keys[signer])))

    def assign(self, device_id: str, digest: str, number: int, *, signer: str = "assignment") -> int:
        assignment = Assignment(device_id, number, "digits", digest, "cd" * 32, 40, START_NS, START_NS + 10)
        envelope = sign_envelope(ASSIGNMENT_TYPE, to_bytes(assignment), self.keys[signer])
        return self.add("assignment", device_id, to_bytes(envelope))

    def offer(self, run_id: str, number: int, handler: str, base: str, weights: bytes, *, signer: str = "run") -> bytes:
        """Log an offer; returns its hash."""
        offer = RoundOffer(
            run_id, number, 2, "care", handler, "digits", base, weights, 40, 1, 10, 0.1, 7, 500, "float32",
            PrivacyTerms(), START_NS, START_NS + 60,
        )  # fmt: skip
        payload = to_bytes(offer)
        self.add("offer", run_id, to_bytes(sign_envelope(OFFER_TYPE, payload, self.keys[signer])))
        return hashlib.sha256(payload).digest()

    def answer(self, device_id: str, offer: bytes, run_id: str, number: int, *, reason: str = "") -> int:
        return self.report(device_id, RoundAnswer(offer, run_id, number, not reason, reason, "rounds.purposes"))

    def update(
        self, device_id: str, offer: bytes, run_id: str, number: int, samples: int, metrics: Mapping[str, float]
    ) -> int:
        statement = UpdateStatement(device_id, offer, run_id, number, "float32", b"", 0, samples, metrics)
        envelope = sign_envelope(UPDATE_TYPE, to_bytes(statement), self.keys[f"device-{device_id}"])
        return self.add("update", run_id, to_bytes(UpdateRecord(to_bytes(envelope), True)))

    def train(self) -> None:
        """Two rounds; both devices take part in the first, s1 refuses the second."""
        first = self.offer(RUN_ID, 1, "train", self.version_1, weights_of(0))
        for device_id in ("n1", "s1"):
            self.answer(device_id, first, RUN_ID, 1)
            self.update(device_id, first, RUN_ID, 1, 100, {"loss": 1.5})
        both = ("n1", "s1")
        self.add(
            "round", RUN_ID, to_bytes(RoundRecord(RUN_ID, 1, "aggregated", "", both, both, both, weights_of(1), 200))
        )
        second = self.offer(RUN_ID, 2, "train", self.version_1, weights_of(1))
        self.answer("n1", second, RUN_ID, 2)
        self.answer("s1", second, RUN_ID, 2, reason="purpose_not_allowed")
        self.update("n1", second, RUN_ID, 2, 100, {"loss": 0.7})
        one = ("n1",)
        self.add(
            "round", RUN_ID, to_bytes(RoundRecord(RUN_ID, 2, "aggregated", "", both, one, one, weights_of(2), 100))
        )

    def judge(self, weights: bytes, correct: Mapping[str, int]) -> None:
        """The run's evaluation of some weights, on 100 samples of each device, under the number of its last round."""
        rest = {"count": 100.0, "loss": 0.5}
        self.evaluate(weights, {device_id: {"correct": float(hits), **rest} for device_id, hits in correct.items()})

    def evaluate(self, weights: bytes, found: Mapping[str, Mapping[str, float]]) -> None:
        """An evaluation in which each device says these numbers."""
        offer = self.offer(RUN_ID, 2, "evaluate", self.version_1, weights)
        for device_id, metrics in found.items():
            self.answer(device_id, offer, RUN_ID, 2)
            self.update(device_id, offer, RUN_ID, 2, 100, metrics)

    def promise(self, device_id: str) -> None:
        head_seq, head_hash = self.heads[device_id]
        statement = InclusionPromise(device_id, head_seq, head_hash, len(self.log))
        self.promises.append(to_bytes(sign_envelope(PROMISE_TYPE, to_bytes(statement), self.keys["ledger"])))

    # what leaves it

    def claimed_keys(self) -> tuple[ClaimedKey, ...]:
        named = {name: key for name, key in self.keys.items() if not name.startswith("device-")}
        return tuple(ClaimedKey(*_role_and_name(name), key.public_key) for name, key in named.items())

    def roots(self) -> tuple[Root, ...]:
        return tuple(Root(claimed.role, claimed.key, claimed.name) for claimed in self.claimed_keys())

    def evidence(self, *, scorecard: object = DEFINITION) -> Evidence:
        """The log as it is now, sealed and honest about it."""
        tree = MerkleTree(leaf_hash(entry) for entry in self.log)
        figures = compute_figures(tuple(parse_entries(self.log)))
        card = None
        if scorecard is not None:
            values = json.loads(evaluate(parse_definition(scorecard), figures).to_json())
            card = canonical_json({"definition": scorecard, "values": values})
        return Evidence(
            origin=ORIGIN,
            exported_utc_ns=START_NS,
            tree_size=tree.size,
            checkpoint=sign_checkpoint(Checkpoint(ORIGIN, tree.size, tree.root()), ORIGIN, self.keys["ledger"]),
            entries=tuple(self.log),
            proofs=tuple(tree.inclusion_proof(index, tree.size) for index in range(tree.size)),
            keys=self.claimed_keys(),
            figures=figures.to_json(),
            scorecard=card,
            promises=tuple(self.promises),
        )

    def export(self, *, scorecard: object = DEFINITION) -> bytes:
        return write_evidence(self.evidence(scorecard=scorecard))


def operational_window(outcomes: Mapping[str, int], latencies_s: Sequence[float]) -> OperationalWindow:
    """A window with one model and 100 bytes of reports sent."""
    model = ModelWindow("digits", "1", "ef" * 32, outcomes, histogram(latencies_s))
    return OperationalWindow(START_NS, START_NS + 60, (model,), 0.1, 1_000, {"report": 100})


def histogram(values: Sequence[float]) -> Histogram:
    """Latencies as they travel."""
    sketch = ExponentialHistogram()
    for value in values:
        sketch.add(value)
    s = sketch.snapshot()
    return Histogram(s.scale, s.zero_count, s.offset, s.counts, s.count, s.sum, s.min, s.max)


def weights_of(number: int) -> bytes:
    return hashlib.sha256(b"weights after round %d" % number).digest()


def _role_and_name(name: str) -> tuple[str, str]:
    role, _, rest = name.partition("-")
    return role, rest
