"""Writes vectors.json: signed bytes that every later release must still read, and write the same where it can.

Run as `python tests/vectors/trust/make_vectors.py` from the repository root; only when a format is added, because a
changed vector is a broken promise to stored evidence. The keys here are published and protect nothing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from holdfast.trust.certificates import Authority, create_authority, create_csr, issue_device, issue_server
from holdfast.trust.checkpoint import Checkpoint, sign_checkpoint, verifier_key
from holdfast.trust.envelope import sign_envelope, to_json
from holdfast.trust.keys import PrivateKey
from holdfast.trust.merkle import MerkleTree, leaf_hash
from holdfast.wire.container import write_container

TARGET = Path(__file__).with_name("vectors.json")
UTC_NS = 1_790_000_000_000_000_000
PAYLOAD_TYPE = "application/vnd.holdfast.policy+json"
PAYLOAD = b'{"k":100}'
ORIGIN = "plant7.example/log"
LEAVES = 11


def ed25519_key() -> PrivateKey:
    """The fixed Ed25519 key of the vectors."""
    seed = hashlib.sha256(b"holdfast golden vector ed25519").digest()
    return PrivateKey(ed25519.Ed25519PrivateKey.from_private_bytes(seed))


def p256_key(name: str) -> PrivateKey:
    """A fixed P-256 key of the vectors."""
    secret = int.from_bytes(hashlib.sha256(b"holdfast golden vector " + name.encode()).digest(), "big")
    return PrivateKey(ec.derive_private_key(secret, ec.SECP256R1()))


def tree() -> MerkleTree:
    """The fixed log of the vectors."""
    return MerkleTree(leaf_hash(b"record %d" % index) for index in range(LEAVES))


def deterministic() -> dict[str, object]:
    """The vectors that are the same bytes every time they are made."""
    key, log = ed25519_key(), tree()
    return {
        "ed25519_key_id": key.public_key.key_id,
        "ed25519_public_pem": key.public_key.to_pem(),
        "p256_public_pem": p256_key("leaf").public_key.to_pem(),
        "envelope_ed25519": to_json(sign_envelope(PAYLOAD_TYPE, PAYLOAD, key)).decode(),
        "checkpoint": sign_checkpoint(Checkpoint(ORIGIN, LEAVES, log.root()), ORIGIN, key),
        "verifier_key": verifier_key(ORIGIN, key.public_key),
        "roots": [log.root(size).hex() for size in range(LEAVES + 1)],
        "inclusion_4_of_11": [node.hex() for node in log.inclusion_proof(4, LEAVES)],
        "consistency_6_to_11": [node.hex() for node in log.consistency_proof(6, LEAVES)],
        "container": write_container("bundle", {"manifest.json": b"{}", "graphs/train.onnx": b"\x08\x0a"}).hex(),
    }


def randomised() -> dict[str, object]:
    """The vectors with an ECDSA nonce or a serial number in them; they can only be read again."""
    authority_key, leaf = p256_key("authority"), p256_key("leaf")
    authority = Authority(authority_key, create_authority(authority_key, "plant7.example", UTC_NS))
    csr = create_csr(leaf, "press-4")
    return {
        "envelope_p256": to_json(sign_envelope(PAYLOAD_TYPE, PAYLOAD, leaf)).decode(),
        "authority": authority.certificate.decode(),
        "csr": csr.decode(),
        "device": issue_device(authority, csr, "press-4", UTC_NS).decode(),
        "server": issue_server(authority, leaf.public_key, ["hub.local"], UTC_NS).decode(),
    }


def main() -> None:
    """Write the file."""
    vectors = {"deterministic": deterministic(), "randomised": randomised()}
    TARGET.write_text(json.dumps(vectors, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
