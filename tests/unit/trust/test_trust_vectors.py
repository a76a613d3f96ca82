"""The golden vectors: bytes of an earlier release still verify, and are still written the same."""

from __future__ import annotations

import json

from tests.vectors.trust import make_vectors

from holdfast.trust.certificates import read_csr, verify_chain
from holdfast.trust.checkpoint import Checkpoint, verify_checkpoint
from holdfast.trust.envelope import from_json, verify_envelope
from holdfast.trust.keys import PublicKey
from holdfast.trust.merkle import leaf_hash, verify_consistency, verify_inclusion
from holdfast.wire.container import read_container

VECTORS = json.loads(make_vectors.TARGET.read_text(encoding="utf-8"))
FIXED = VECTORS["deterministic"]
RANDOM = VECTORS["randomised"]
ED25519 = PublicKey.from_pem(FIXED["ed25519_public_pem"])
P256 = PublicKey.from_pem(FIXED["p256_public_pem"])


def test_deterministic_vectors_are_still_written_the_same() -> None:
    assert make_vectors.deterministic() == FIXED


def test_envelopes_still_verify() -> None:
    for name, key in ((FIXED["envelope_ed25519"], ED25519), (RANDOM["envelope_p256"], P256)):
        verified = verify_envelope(from_json(name.encode()), make_vectors.PAYLOAD_TYPE, [key])

        assert verified.payload == make_vectors.PAYLOAD


def test_checkpoint_still_verifies() -> None:
    root = bytes.fromhex(FIXED["roots"][11])

    assert verify_checkpoint(FIXED["checkpoint"], make_vectors.ORIGIN, ED25519) == Checkpoint(
        make_vectors.ORIGIN, 11, root
    )


def test_proofs_still_verify() -> None:
    roots = [bytes.fromhex(root) for root in FIXED["roots"]]
    inclusion, consistency = (
        [bytes.fromhex(node) for node in FIXED[name]] for name in ("inclusion_4_of_11", "consistency_6_to_11")
    )

    verify_inclusion(leaf_hash(b"record 4"), 4, 11, inclusion, roots[11])
    verify_consistency(6, 11, consistency, roots[6], roots[11])


def test_certificates_still_verify() -> None:
    authorities = [RANDOM["authority"].encode()]

    device = verify_chain(RANDOM["device"].encode(), authorities, "device", make_vectors.UTC_NS)
    server = verify_chain(RANDOM["server"].encode(), authorities, "server", make_vectors.UTC_NS)

    assert (device.device_id, device.public_key, server.public_key) == ("press-4", P256, P256)
    assert read_csr(RANDOM["csr"].encode()).device_id == "press-4"


def test_container_still_reads() -> None:
    assert read_container(bytes.fromhex(FIXED["container"]), "bundle") == {
        "graphs/train.onnx": b"\x08\x0a",
        "manifest.json": b"{}",
    }
