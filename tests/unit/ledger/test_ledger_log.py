from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.clock import FakeClock

from holdfast.errors import TrustError
from holdfast.trust.checkpoint import verify_checkpoint
from holdfast.trust.envelope import verify_envelope
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.trust.merkle import EMPTY_ROOT, MerkleTree, leaf_hash, verify_consistency, verify_inclusion
from holdfast.wire.convert import from_bytes
from holdfast.wire.messages import PROMISE_TYPE, InclusionPromise, LedgerEntry
from holdfast_federation.database import Database
from holdfast_federation.ledger.log import Ledger
from holdfast_federation.ledger.schema import SCHEMA

ORIGIN = "plant7.example/ledger"
KEY = PrivateKey.generate(ED25519)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "test.db", [SCHEMA])
    yield database
    database.close()


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database, KEY, ORIGIN, FakeClock())


def fill(database: Database, ledger: Ledger, count: int) -> None:
    with database.write() as cx:
        for index in range(count):
            ledger.record(cx, "report" if index % 2 else "bundle", f"device-{index % 3}", b"%d" % index)


def test_empty_ledger_has_the_empty_root(ledger: Ledger) -> None:
    checkpoint = verify_checkpoint(ledger.checkpoint(), ORIGIN, KEY.public_key)

    assert (checkpoint.size, checkpoint.root) == (0, EMPTY_ROOT)


def test_roots_and_proofs_equal_those_of_the_tree_in_memory(database: Database, ledger: Ledger) -> None:
    count = 70  # past one full tree of 64
    fill(database, ledger, count)
    tree = MerkleTree(leaf_hash(data) for _, data in ledger.entries(0, count))

    for size in range(1, count + 1):
        assert ledger.root(size) == tree.root(size)
        for index in range(0, size, 7):
            assert ledger.inclusion_proof(index, size) == tree.inclusion_proof(index, size)
        for old in range(0, size + 1, 5):
            assert ledger.consistency_proof(old, size) == tree.consistency_proof(old, size)


def test_entry_is_proven_under_the_checkpoint(database: Database, ledger: Ledger) -> None:
    fill(database, ledger, 13)
    checkpoint = verify_checkpoint(ledger.checkpoint(), ORIGIN, KEY.public_key)
    data = dict(ledger.entries(0, 13))[5]

    proof = ledger.inclusion_proof(5, checkpoint.size)

    verify_inclusion(leaf_hash(data), 5, checkpoint.size, proof, checkpoint.root)
    with pytest.raises(TrustError):
        verify_inclusion(leaf_hash(data + b"x"), 5, checkpoint.size, proof, checkpoint.root)


def test_later_checkpoint_continues_the_earlier_one(database: Database, ledger: Ledger) -> None:
    fill(database, ledger, 11)
    old = verify_checkpoint(ledger.checkpoint(), ORIGIN, KEY.public_key)
    fill(database, ledger, 9)
    new = verify_checkpoint(ledger.checkpoint(), ORIGIN, KEY.public_key)

    verify_consistency(old.size, new.size, ledger.consistency_proof(old.size, new.size), old.root, new.root)


def test_entry_of_an_undone_transaction_is_not_in_the_log(database: Database, ledger: Ledger) -> None:
    fill(database, ledger, 3)
    before = ledger.checkpoint()

    with pytest.raises(ValueError, match="undone"), database.write() as cx:  # noqa: PT012
        ledger.record(cx, "report", "d", b"x")
        raise ValueError("undone")

    assert ledger.checkpoint() == before
    fill(database, ledger, 1)
    assert ledger.size() == 4


def test_entries_are_the_bytes_that_were_hashed(database: Database, ledger: Ledger) -> None:
    entry = LedgerEntry("approval", "abc", 77, b"body")
    with database.write() as cx:
        index = ledger.append(cx, entry)

    [(position, data)] = ledger.entries(index, index + 1)

    assert position == index
    assert from_bytes(LedgerEntry, data) == entry


def test_entries_of_a_long_range_come_in_order(database: Database, ledger: Ledger) -> None:
    fill(database, ledger, 600)

    positions = [position for position, _ in ledger.entries(10, 590)]

    assert positions == list(range(10, 590))


def test_positions_find_entries_by_subject_and_kind(database: Database, ledger: Ledger) -> None:
    fill(database, ledger, 12)

    assert ledger.positions("device-1", "report") == (1, 7)
    assert ledger.positions("nobody", "report") == ()


def test_promise_names_the_head_and_the_size(database: Database, ledger: Ledger) -> None:
    fill(database, ledger, 5)

    envelope = ledger.promise("d1", 4, b"h" * 32)

    verified = verify_envelope(envelope, PROMISE_TYPE, [KEY.public_key])
    assert from_bytes(InclusionPromise, verified.payload) == InclusionPromise("d1", 4, b"h" * 32, 5)


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 4), (0, 0)])
def test_proof_of_what_is_not_there_is_refused(database: Database, ledger: Ledger, index: int, size: int) -> None:
    fill(database, ledger, 3)

    with pytest.raises(TrustError, match="log has 3"):
        ledger.inclusion_proof(index, size)


@pytest.mark.parametrize(("old", "new"), [(-1, 2), (2, 1), (1, 4)])
def test_consistency_of_sizes_that_never_were_is_refused(
    database: Database, ledger: Ledger, old: int, new: int
) -> None:
    fill(database, ledger, 3)

    with pytest.raises(TrustError, match="log has 3"):
        ledger.consistency_proof(old, new)
