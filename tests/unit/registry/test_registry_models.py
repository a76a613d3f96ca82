"""Only what devices would accept is published; every step is in the ledger; pieces are bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes import bundles
from tests.fakes.registry_rooms import RegistryRooms, make_registry_rooms

from holdfast.bundle.approval import REJECT
from holdfast.bundle.verify import read_bundle
from holdfast.errors import FormatError, StateError, TrustError, UnknownModelError, UsageError
from holdfast.wire.convert import from_bytes
from holdfast.wire.limits import MAX_PIECE_BYTES
from holdfast.wire.messages import BundleRecord, LedgerEntry

KEYS = bundles.make_keys()
FIRST = bundles.author_bundle(KEYS)
CANDIDATE = bundles.candidate_bundle(KEYS, FIRST)
DIGEST = read_bundle(FIRST).digest


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[RegistryRooms]:
    rooms = make_registry_rooms(tmp_path, KEYS)
    yield rooms
    rooms.database.close()


def test_author_bundle_is_published_with_its_ledger_entry(rooms: RegistryRooms) -> None:
    version = rooms.registry.add(FIRST)

    assert (version.name, version.version, version.signed_by) == ("scale", "1", "author")
    assert rooms.registry.container(DIGEST) == FIRST
    ((_, data),) = rooms.ledger.entries(0, 1)
    entry = from_bytes(LedgerEntry, data)
    assert (entry.kind, entry.subject) == ("bundle", DIGEST)
    assert from_bytes(BundleRecord, entry.body).manifest == read_bundle(FIRST).manifest_bytes


def test_publishing_again_changes_nothing(rooms: RegistryRooms) -> None:
    assert rooms.registry.add(FIRST) == rooms.registry.add(FIRST)
    assert rooms.kinds() == ["bundle"]


def test_bundle_signed_again_is_the_same_bundle(rooms: RegistryRooms) -> None:
    first = rooms.registry.add(FIRST)
    again = bundles.author_bundle(KEYS)  # ECDSA: another signature, so other bytes
    assert again != FIRST

    assert rooms.registry.add(again) == first


def test_candidate_is_published_with_its_lineage(rooms: RegistryRooms) -> None:
    rooms.registry.add(FIRST)

    version = rooms.registry.add(CANDIDATE)

    assert (version.signed_by, version.run_id, version.ancestor_digest) == ("run", "run-1", DIGEST)
    assert version.change_norm == pytest.approx(1.0)
    assert [each.version for each in rooms.registry.models()] == ["1", "2"]


def test_candidate_whose_ancestor_is_not_published_is_refused(rooms: RegistryRooms) -> None:
    with pytest.raises(TrustError, match="is not published here"):
        rooms.registry.add(CANDIDATE)


def test_candidate_beyond_the_envelope_is_refused(rooms: RegistryRooms) -> None:
    rooms.registry.add(FIRST)

    with pytest.raises(TrustError, match="at most 2 is allowed"):
        rooms.registry.add(bundles.candidate_bundle(KEYS, FIRST, 3.0))
    assert rooms.kinds() == ["bundle"]


@pytest.mark.parametrize("defect", ["truncated", "flipped", "of_a_stranger", "empty"])
def test_bundle_with_a_defect_is_refused_and_nothing_is_kept(rooms: RegistryRooms, tmp_path: Path, defect: str) -> None:
    data = {
        "truncated": FIRST[:-1],
        "flipped": FIRST[:-1] + bytes([FIRST[-1] ^ 1]),
        "of_a_stranger": bundles.author_bundle(bundles.make_keys()),
        "empty": b"",
    }[defect]

    with pytest.raises((FormatError, TrustError)):
        rooms.registry.add(data)

    assert rooms.registry.models() == ()
    assert list((tmp_path / "blobs" / "sha256").iterdir()) == []


def test_other_content_under_a_taken_version_is_refused(rooms: RegistryRooms) -> None:
    rooms.registry.add(FIRST)

    with pytest.raises(UsageError, match="pack it under a new version"):
        rooms.registry.add(bundles.author_bundle(KEYS, weight=bundles.WEIGHT + 1))


def test_unknown_digest_and_version_are_named(rooms: RegistryRooms) -> None:
    with pytest.raises(UnknownModelError, match="is not published"):
        rooms.registry.get("f" * 64)
    with pytest.raises(UnknownModelError, match="has no version '7'"):
        rooms.registry.named("scale", "7")


def test_decisions_change_the_state_and_are_in_the_ledger(rooms: RegistryRooms) -> None:
    rooms.registry.add(FIRST)
    states = [rooms.registry.state(DIGEST)]

    for decision in ("approve", REJECT):
        rooms.registry.approve(bundles.approval(KEYS.approver, FIRST, decision=decision))
        states.append(rooms.registry.state(DIGEST))

    assert states == ["waits for approval", "approved", "rejected"]
    assert rooms.kinds() == ["bundle", "approval", "approval"]


def test_same_decision_again_changes_nothing(rooms: RegistryRooms) -> None:
    rooms.registry.add(FIRST)
    document = bundles.approval(KEYS.approver, FIRST)
    rooms.registry.approve(document)
    rooms.registry.approve(document)

    assert rooms.registry.approvals(DIGEST) == (document,)
    assert rooms.kinds() == ["bundle", "approval"]


def test_approval_expires(rooms: RegistryRooms) -> None:
    rooms.registry.add(FIRST)
    rooms.registry.approve(bundles.approval(KEYS.approver, FIRST))
    rooms.clock.advance(25 * 3_600)

    assert rooms.registry.state(DIGEST) == "waits for approval"
    with pytest.raises(TrustError, match="has expired"):
        rooms.registry.check_approved(DIGEST)


def test_approval_by_a_stranger_is_refused(rooms: RegistryRooms) -> None:
    rooms.registry.add(FIRST)

    with pytest.raises(TrustError):
        rooms.registry.approve(bundles.approval(KEYS.author, FIRST))


def test_approval_of_what_was_never_published_is_refused(rooms: RegistryRooms) -> None:
    with pytest.raises(UnknownModelError):
        rooms.registry.approve(bundles.approval(KEYS.approver, FIRST))


def test_pieces_make_up_the_container(rooms: RegistryRooms) -> None:
    blob = rooms.registry.add(FIRST).blob_sha256
    pieces = [rooms.registry.piece(blob, offset, 1_000) for offset in range(0, len(FIRST), 1_000)]

    assert b"".join(piece.data for piece in pieces) == FIRST
    assert {piece.total_bytes for piece in pieces} == {len(FIRST)}
    assert len(rooms.registry.piece(blob, 0, 2**40).data) <= MAX_PIECE_BYTES


@pytest.mark.parametrize(("blob", "offset", "size"), [("../x", 0, 1), ("", 0, 1), (None, -1, 1), (None, 10**9, 1)])
def test_piece_out_of_bounds_is_refused(rooms: RegistryRooms, blob: str | None, offset: int, size: int) -> None:
    sha256 = rooms.registry.add(FIRST).blob_sha256

    with pytest.raises(FormatError):
        rooms.registry.piece(sha256 if blob is None else blob, offset, size)


def test_container_that_changed_on_disk_is_named(rooms: RegistryRooms, tmp_path: Path) -> None:
    blob = rooms.registry.add(FIRST).blob_sha256
    (tmp_path / "blobs" / "sha256" / blob).write_bytes(b"other")

    with pytest.raises(StateError, match="changed on disk"):
        rooms.registry.container(DIGEST)
