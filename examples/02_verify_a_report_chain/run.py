"""Makes a chain of signed reports and a log over it, checks both from public keys, and shows that damage is found."""

from __future__ import annotations

import hashlib
import secrets
import sys
from collections.abc import Callable, Sequence

from holdfast.errors import ChainError, HoldfastError
from holdfast.trust.checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from holdfast.trust.envelope import Envelope, sign_envelope, verify_envelope
from holdfast.trust.keys import ED25519, PrivateKey, PublicKey
from holdfast.trust.merkle import MerkleTree, leaf_hash, verify_consistency, verify_inclusion
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.messages import NO_HASH, REPORT_TYPE, ClockReading, OperationalWindow, Report

LOG = "plant7.example/ledger"
NS_PER_MINUTE = 60 * 10**9
START_UTC_NS = 1_790_000_000 * 10**9


def make_chain(device_key: PrivateKey, count: int) -> list[Envelope]:
    """What a device does: number, link, sign the exact bytes."""
    chain: list[Envelope] = []
    previous = NO_HASH
    for seq in range(1, count + 1):
        start = START_UTC_NS + seq * NS_PER_MINUTE
        report = Report(
            device_id="ward-3",
            key_epoch=1,
            boot_id="first",
            seq=seq,
            prev_hash=previous,
            clock=ClockReading(start + NS_PER_MINUTE, monotonic_ns=seq * NS_PER_MINUTE),
            operational=OperationalWindow(start, start + NS_PER_MINUTE, cpu_s=1.5, bytes_out={"report": 512}),
        )
        payload = to_bytes(report)
        chain.append(sign_envelope(REPORT_TYPE, payload, device_key))
        previous = hashlib.sha256(payload).digest()
    return chain


def check_chain(chain: Sequence[Envelope], device_key: PublicKey) -> None:
    """What anybody can do. Verify first, parse afterwards.

    Raises:
        HoldfastError: a signature, a number or a link does not hold; the text says which.
    """
    previous = NO_HASH
    for expected_seq, envelope in enumerate(chain, start=1):
        verified = verify_envelope(envelope, REPORT_TYPE, [device_key])
        report = from_bytes(Report, verified.payload)
        if report.seq != expected_seq:
            raise ChainError(f"record {expected_seq} is missing; found {report.seq}")
        if report.prev_hash != previous:
            raise ChainError(f"record {report.seq} does not follow the one before it")
        previous = hashlib.sha256(verified.payload).digest()


def flipped(envelope: Envelope) -> Envelope:
    """The same envelope with one bit of its payload changed, somewhere."""
    payload = bytearray(envelope.payload)
    payload[secrets.randbelow(len(payload))] ^= 1 << secrets.randbelow(8)
    return Envelope(envelope.payload_type, bytes(payload), envelope.signatures)


def refusal(check: Callable[[], None]) -> str:
    """Why the check said no; empty if it did not."""
    try:
        check()
    except HoldfastError as error:
        return f"{error.code} {error}"
    return ""


def check_log(chain: Sequence[Envelope], ledger_key: PrivateKey) -> None:
    """A log over the reports: two signed states of it, one report proven to be in it, and that it only grew."""
    tree = MerkleTree()
    leaves = [leaf_hash(to_bytes(envelope)) for envelope in chain]
    for leaf in leaves[:3]:
        tree.append(leaf)
    early = sign_checkpoint(Checkpoint(LOG, tree.size, tree.root()), LOG, ledger_key)
    for leaf in leaves[3:]:
        tree.append(leaf)
    late = sign_checkpoint(Checkpoint(LOG, tree.size, tree.root()), LOG, ledger_key)

    before, now = (verify_checkpoint(text, LOG, ledger_key.public_key) for text in (early, late))
    proof = tree.inclusion_proof(1, now.size)
    verify_inclusion(leaves[1], 1, now.size, proof, now.root)
    print(f"report 2 is in the log of {now.size}: shown by {len(proof)} hashes and one signature")
    verify_consistency(before.size, now.size, tree.consistency_proof(before.size, now.size), before.root, now.root)
    print(f"the log of {now.size} is the log of {before.size}, continued")


def main() -> int:
    device, stranger = PrivateKey.generate(ED25519), PrivateKey.generate(ED25519)
    chain = make_chain(device, 8)
    check_chain(chain, device.public_key)
    print(f"{len(chain)} reports: signatures, numbers and links hold")
    check_log(chain, PrivateKey.generate(ED25519))

    damaged = {
        "one flipped bit in report 5": [*chain[:4], flipped(chain[4]), *chain[5:]],
        "report 3 dropped": [*chain[:2], *chain[3:]],
        "all signed again by another key": make_chain(stranger, 8),
    }
    found = {what: refusal(lambda bad=bad: check_chain(bad, device.public_key)) for what, bad in damaged.items()}
    for what, why in found.items():
        print(f"{what}: {why or 'NOT FOUND'}")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
