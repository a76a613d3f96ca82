"""The evidence against other implementations: signatures by `cryptography`, the root by the words of RFC 9162."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from tests.fakes.evidence_world import World

from holdfast.evidence.figures import wilson
from holdfast.evidence.layout import read_evidence
from holdfast.evidence.verify import verify_evidence
from holdfast.wire.container import read_container
from holdfast.wire.v1 import envelope_pb2, ledger_pb2, report_pb2

WORLD = World()
SEALED = WORLD.export()


def merkle_tree_hash(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162 2.1.1, by its definition."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + merkle_tree_hash(leaves[:k]) + merkle_tree_hash(leaves[k:])).digest()


def pae(payload_type: bytes, payload: bytes) -> bytes:
    """DSSE protocol.md, by its definition."""
    return b" ".join([b"DSSEv1", str(len(payload_type)).encode(), payload_type, str(len(payload)).encode(), payload])


def test_the_signed_root_is_that_of_a_naive_tree() -> None:
    files = read_container(SEALED, "evidence")
    lines = files["checkpoint"].decode().split("\n")
    entries = read_evidence(SEALED).entries

    assert lines[1] == str(len(entries))
    assert base64.b64decode(lines[2]) == merkle_tree_hash(entries)


def test_the_checkpoint_signature_holds_by_cryptography() -> None:
    files = read_container(SEALED, "evidence")
    key = serialization.load_pem_public_key(files["keys/ledger.pub"])
    body, _, tail = files["checkpoint"].decode().partition("\n\n")
    signature = base64.b64decode(tail.split()[2])[4:]

    assert isinstance(key, ed25519.Ed25519PublicKey)
    key.verify(signature, (body + "\n").encode())
    with pytest.raises(InvalidSignature):
        key.verify(signature, body.encode())


def test_every_record_signature_holds_by_cryptography() -> None:
    keys = {}
    checked = 0
    for data in read_evidence(SEALED).entries:
        entry = ledger_pb2.LedgerEntry.FromString(data)
        if entry.kind == "enrolment":
            enrolment = ledger_pb2.EnrolmentRecord.FromString(entry.body)
            keys[enrolment.device_id] = serialization.load_der_public_key(enrolment.report_key_spki)
        elif entry.kind == "report":
            envelope = envelope_pb2.Envelope.FromString(entry.body)
            report = report_pb2.Report.FromString(envelope.payload)
            key = keys[report.device_id]
            assert isinstance(key, ed25519.Ed25519PublicKey)
            key.verify(envelope.signatures[0].signature, pae(envelope.payload_type.encode(), envelope.payload))
            checked += 1

    assert checked == 13


def test_the_author_signature_holds_by_cryptography() -> None:
    files = read_container(SEALED, "evidence")
    author = serialization.load_pem_public_key(files["keys/author.pub"])
    entries = [ledger_pb2.LedgerEntry.FromString(data) for data in read_evidence(SEALED).entries]
    record = ledger_pb2.BundleRecord.FromString(next(entry.body for entry in entries if entry.kind == "bundle"))
    document = json.loads(record.signature)
    signature = base64.b64decode(document["signatures"][0]["sig"])

    assert isinstance(author, ec.EllipticCurvePublicKey)
    author.verify(signature, pae(document["payloadType"].encode(), record.manifest), ec.ECDSA(hashes.SHA256()))


def test_figures_are_the_sums_of_what_was_sent() -> None:
    figures = verify_evidence(SEALED).figures
    assert figures is not None

    assert figures.fleet.requests == {"ok": 110, "HF-REQUEST-003": 2}
    assert figures.fleet.bytes_out == {"report": 300}
    assert figures.sites["south"].refusals == {"purpose_not_allowed": 1}
    assert figures.runs["run-1"].refusals == {"s1": "purpose_not_allowed"}
    assert figures.runs["run-1"].rounds[1].participants == {"n1": 100}
    assert figures.evaluation["digits@1"].accuracy.share == pytest.approx(130 / 200)
    assert figures.evaluation["digits@2"].devices["s1"].hits == 90


def test_fleet_percentiles_are_those_of_all_values_together() -> None:
    chance = np.random.default_rng(5)
    fast, slow = chance.gamma(4.0, 0.002, 900), chance.gamma(4.0, 0.05, 100)
    busy = World()
    busy.window("n1", {"ok": 900}, [float(value) for value in fast])
    busy.window("s1", {"ok": 100}, [float(value) for value in slow])

    figures = verify_evidence(busy.export()).figures

    assert figures is not None
    everything = np.sort(np.concatenate([fast, slow, [0.010, 0.012, 0.020, 0.030, 0.040, 0.011]]))
    for quantile, got in ((0.5, figures.fleet.latency.p50_s), (0.99, figures.fleet.latency.p99_s)):
        exact = everything[math.ceil(quantile * len(everything)) - 1]
        assert got == pytest.approx(exact, rel=figures.fleet.latency.relative_error)


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (1, 2), (185, 200), (70_000, 100_000)])
def test_wilson_is_that_of_scipy(hits: int, count: int) -> None:
    expected = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")

    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-8)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
