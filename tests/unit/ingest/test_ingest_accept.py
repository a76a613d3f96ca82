from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.coordinator_rooms import TRUST_DOMAIN, Rooms, make_rooms
from tests.fakes.raw_device import Chain, RawDevice, window

from holdfast.errors import FormatError, StateError, TrustError
from holdfast.trust.checkpoint import verify_checkpoint
from holdfast.trust.envelope import Envelope, Signature, sign_envelope, verify_envelope
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.trust.merkle import MerkleTree, leaf_hash
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.limits import MAX_RECORDS_PER_REPORT, MAX_REPORT_BYTES
from holdfast.wire.messages import (
    NO_HASH,
    PROMISE_TYPE,
    REPORT_TYPE,
    InclusionPromise,
    LedgerEntry,
    ModelEvent,
    PolicyChange,
    RoundAnswer,
    Tombstone,
)
from holdfast_federation.events.outbox import read


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Rooms]:
    rooms = make_rooms(tmp_path)
    yield rooms
    rooms.close()


@pytest.fixture
def device(rooms: Rooms) -> RawDevice:
    return rooms.enrolled()


def stored(rooms: Rooms, device: RawDevice) -> list[int]:
    with rooms.core.database.read() as cx:
        rows = cx.execute("SELECT seq FROM records WHERE device_id = ? ORDER BY seq", (device.device_id,)).fetchall()
    return [row["seq"] for row in rows]


def forks(rooms: Rooms, device: RawDevice) -> list[bytes]:
    with rooms.core.database.read() as cx:
        rows = cx.execute("SELECT envelope FROM forks WHERE device_id = ?", (device.device_id,)).fetchall()
    return [bytes(row["envelope"]) for row in rows]


def test_records_are_acknowledged_with_a_promise_that_holds(rooms: Rooms, device: RawDevice) -> None:
    chain = device.chain()

    answer = rooms.core.ingest.accept(device.device_id, [chain.next() for _ in range(3)])

    assert (answer.head_seq, answer.head_hash, answer.refused_code) == (3, chain.head_hash, "")
    key = rooms.core.ledger.public_key
    assert answer.promise is not None
    promise = from_bytes(InclusionPromise, verify_envelope(answer.promise, PROMISE_TYPE, [key]).payload)
    checkpoint = verify_checkpoint(answer.checkpoint, f"{TRUST_DOMAIN}/ledger", key)
    assert promise == InclusionPromise(device.device_id, 3, chain.head_hash, 4)
    assert checkpoint.size == 4  # the enrolment and three records


def test_record_is_in_the_ledger_as_it_was_signed(rooms: Rooms, device: RawDevice) -> None:
    envelope = device.chain().next()
    rooms.core.ingest.accept(device.device_id, [envelope])

    [position] = rooms.core.ledger.positions(device.device_id, "report")
    [(_, data)] = rooms.core.ledger.entries(position, position + 1)

    assert from_bytes(Envelope, from_bytes(LedgerEntry, data).body) == envelope


def test_replay_has_its_effect_once(rooms: Rooms, device: RawDevice) -> None:
    chain = device.chain()
    records = [chain.next(window([0.001] * 5)) for _ in range(4)]
    first = rooms.core.ingest.accept(device.device_id, records)

    again = rooms.core.ingest.accept(device.device_id, records)
    partly = rooms.core.ingest.accept(device.device_id, [*records[2:], chain.next(window([0.001] * 5))])

    assert (again.head_seq, again.refused_code, again.checkpoint) == (4, "", first.checkpoint)
    assert (partly.head_seq, partly.refused_code) == (5, "")
    [figures] = rooms.core.fleet.models()
    assert (figures.requests, figures.windows) == (25, 5)


def test_any_order_of_delivery_ends_in_the_same_chain(rooms: Rooms, device: RawDevice) -> None:
    chain = device.chain()
    records = [chain.next() for _ in range(6)]
    rng = random.Random(7)

    while rooms.core.ingest.head(device.device_id).seq < 6:
        first = rng.randrange(6)
        rooms.core.ingest.accept(device.device_id, records[first : first + rng.randrange(1, 4)])

    assert stored(rooms, device) == [1, 2, 3, 4, 5, 6]
    assert forks(rooms, device) == []


def test_gap_is_refused_and_names_the_head(rooms: Rooms, device: RawDevice) -> None:
    chain = device.chain()
    records = [chain.next() for _ in range(4)]

    answer = rooms.core.ingest.accept(device.device_id, [records[0], records[2], records[3]])

    assert (answer.head_seq, answer.refused_code) == (1, "gap")
    assert "from 2" in answer.refused_reason
    assert stored(rooms, device) == [1]


def test_first_record_that_is_not_the_first_is_a_gap(rooms: Rooms, device: RawDevice) -> None:
    chain = device.chain()
    chain.next()

    answer = rooms.core.ingest.accept(device.device_id, [chain.next()])

    assert (answer.head_seq, answer.head_hash, answer.refused_code) == (0, NO_HASH, "gap")


def test_fork_is_refused_and_both_are_kept(rooms: Rooms, device: RawDevice) -> None:
    chain, twin = device.chain(), device.chain()
    kept, other = chain.next(window([0.001])), twin.next(window([0.002]))
    rooms.core.ingest.accept(device.device_id, [kept])

    answer = rooms.core.ingest.accept(device.device_id, [other])

    assert (answer.head_seq, answer.refused_code) == (1, "fork")
    assert answer.head_hash == chain.head_hash
    assert forks(rooms, device) == [to_bytes(other)]
    [event] = read(rooms.core.database, kinds=("chain_fork",))
    assert (event.subject, event.body) == (device.device_id, to_bytes(other))
    assert rooms.core.fleet.reporting()[device.device_id].forks == 1
    assert rooms.core.ledger.positions(device.device_id, "fork") == (2,)


def test_fork_sent_again_is_kept_once(rooms: Rooms, device: RawDevice) -> None:
    other = device.chain().next(window([0.002]))
    rooms.core.ingest.accept(device.device_id, [device.chain().next()])

    for _ in range(3):
        rooms.core.ingest.accept(device.device_id, [other])

    assert len(forks(rooms, device)) == 1
    assert len(read(rooms.core.database, kinds=("chain_fork",))) == 1


def test_record_on_another_predecessor_is_a_fork(rooms: Rooms, device: RawDevice) -> None:
    chain = device.chain()
    rooms.core.ingest.accept(device.device_id, [chain.next()])

    answer = rooms.core.ingest.accept(device.device_id, [chain.next(prev_hash=b"x" * 32)])

    assert (answer.head_seq, answer.refused_code) == (1, "fork")
    assert len(forks(rooms, device)) == 1


def test_records_before_the_refused_one_are_kept(rooms: Rooms, device: RawDevice) -> None:
    chain = device.chain()
    good = [chain.next(), chain.next()]
    bad = replace(chain.next(), signatures=(Signature(device.report_key.public_key.key_id, b"x" * 64),))

    answer = rooms.core.ingest.accept(device.device_id, [*good, bad])

    assert (answer.head_seq, answer.refused_code) == (2, "signature")


def test_bad_signature_is_refused(rooms: Rooms, device: RawDevice) -> None:
    record = device.chain().next()

    answer = rooms.core.ingest.accept(device.device_id, [replace(record, payload=record.payload + b"\x00")])

    assert (answer.head_seq, answer.refused_code) == (0, "signature")


def test_record_signed_by_another_key_is_refused(rooms: Rooms, device: RawDevice) -> None:
    record = Chain(device.device_id, PrivateKey.generate(ED25519)).next()

    assert rooms.core.ingest.accept(device.device_id, [record]).refused_code == "signature"


def test_record_of_another_payload_type_is_refused(rooms: Rooms, device: RawDevice) -> None:
    record = replace(device.chain().next(), payload_type="application/vnd.holdfast.update.v1+protobuf")

    assert rooms.core.ingest.accept(device.device_id, [record]).refused_code == "signature"


def test_record_that_names_another_device_is_refused(rooms: Rooms, device: RawDevice) -> None:
    record = device.chain().next(device_id="d-somebody")

    answer = rooms.core.ingest.accept(device.device_id, [record])

    assert (answer.refused_code, answer.head_seq) == ("format", 0)


def test_record_of_another_device_is_refused(rooms: Rooms, device: RawDevice) -> None:
    other = rooms.enrolled()

    assert rooms.core.ingest.accept(device.device_id, [other.chain().next()]).refused_code == "signature"


@pytest.mark.parametrize(
    "changes",
    [{"key_epoch": 2}, {"seq": 0}, {"seq": 2**63}, {"prev_hash": b""}, {"operational": None}],
    ids=["another key epoch", "number zero", "number too large", "no prev_hash", "no body"],
)
def test_record_out_of_bounds_is_refused(rooms: Rooms, device: RawDevice, changes: dict[str, object]) -> None:
    answer = rooms.core.ingest.accept(device.device_id, [device.chain().next(**changes)])

    assert (answer.refused_code, answer.head_seq) == ("format", 0)


def test_record_that_is_no_report_is_refused(rooms: Rooms, device: RawDevice) -> None:
    record = sign_envelope(REPORT_TYPE, b"\xff\xff\xff", device.report_key)

    assert rooms.core.ingest.accept(device.device_id, [record]).refused_code == "format"


def test_oversized_record_is_refused(rooms: Rooms, device: RawDevice) -> None:
    record = device.chain().next(PolicyChange("ab", 1, b"x" * MAX_REPORT_BYTES))

    answer = rooms.core.ingest.accept(device.device_id, [record])

    assert (answer.refused_code, answer.head_seq) == ("format", 0)
    assert str(MAX_REPORT_BYTES) in answer.refused_reason


def test_too_many_records_in_one_call_are_refused(rooms: Rooms, device: RawDevice) -> None:
    record = device.chain().next()

    with pytest.raises(FormatError, match="at most"):
        rooms.core.ingest.accept(device.device_id, [record] * (MAX_RECORDS_PER_REPORT + 1))


def test_unknown_device_is_refused(rooms: Rooms) -> None:
    with pytest.raises(TrustError, match="not known"):
        rooms.core.ingest.accept("nobody", [])


def test_empty_report_answers_with_the_head(rooms: Rooms, device: RawDevice) -> None:
    chain = device.chain()
    rooms.core.ingest.accept(device.device_id, [chain.next()])

    answer = rooms.core.ingest.accept(device.device_id, [])

    assert (answer.head_seq, answer.head_hash, answer.refused_code) == (1, chain.head_hash, "")


def test_surplus_signature_is_not_kept(rooms: Rooms, device: RawDevice) -> None:
    record = device.chain().next()
    rooms.core.ingest.accept(
        device.device_id, [replace(record, signatures=(*record.signatures, Signature("other", b"x" * 100)))]
    )

    [position] = rooms.core.ledger.positions(device.device_id, "report")
    [(_, data)] = rooms.core.ledger.entries(position, position + 1)

    assert from_bytes(Envelope, from_bytes(LedgerEntry, data).body) == record


def test_tombstone_stands_for_dropped_records(rooms: Rooms, device: RawDevice) -> None:
    chain = device.chain()
    rooms.core.ingest.accept(device.device_id, [chain.next()])
    before = chain.head_hash
    for _ in range(3):
        chain.next()  # 2 to 4, dropped by the device
    dropped = chain.head_hash
    tombstone = device.chain().next(Tombstone(2, 4, dropped, {"ok": 3}), seq=4, prev_hash=before)

    answer = rooms.core.ingest.accept(device.device_id, [tombstone, chain.next()])

    assert (answer.head_seq, answer.refused_code) == (5, "")
    assert stored(rooms, device) == [1, 4, 5]


def test_tombstone_does_not_hide_a_gap(rooms: Rooms, device: RawDevice) -> None:
    tombstone = device.chain().next(Tombstone(3, 4, b"h" * 32), seq=4)

    assert rooms.core.ingest.accept(device.device_id, [tombstone]).refused_code == "gap"


@pytest.mark.parametrize(("first", "last"), [(0, 4), (5, 4), (2, 3)])
def test_tombstone_over_an_impossible_range_is_refused(rooms: Rooms, device: RawDevice, first: int, last: int) -> None:
    tombstone = device.chain().next(Tombstone(first, last, b"h" * 32), seq=4)

    assert rooms.core.ingest.accept(device.device_id, [tombstone]).refused_code == "format"


def test_answers_and_changes_become_events(rooms: Rooms, device: RawDevice) -> None:
    chain = device.chain()
    records = [
        chain.next(RoundAnswer(b"o" * 32, "run-1", 2, False, "purpose", "rounds.purposes")),
        chain.next(PolicyChange("ab" * 32, 1, b"{}")),
        chain.next(ModelEvent("digits", "ab" * 32, "activated")),
    ]

    rooms.core.ingest.accept(device.device_id, records)

    events = read(rooms.core.database, kinds=("round_answer", "policy_change", "model_event"))
    assert [(event.kind, event.subject) for event in events] == [
        ("round_answer", "run-1"),
        ("policy_change", device.device_id),
        ("model_event", device.device_id),
    ]
    assert [event.body for event in events] == [to_bytes(record) for record in records]
    [refusal] = rooms.core.fleet.refusals()
    assert (refusal.device_id, refusal.run_id, refusal.round) == (device.device_id, "run-1", 2)
    assert (refusal.reason_code, refusal.policy_rule) == ("purpose", "rounds.purposes")


def test_devices_reporting_at_once_keep_their_chains_and_one_log(rooms: Rooms) -> None:
    devices = [rooms.enrolled() for _ in range(4)]
    records = {device.device_id: [chain.next() for _ in range(12)] for device in devices for chain in [device.chain()]}
    barrier = threading.Barrier(8)

    def report(device_id: str) -> None:
        barrier.wait(30)
        for record in records[device_id]:
            rooms.core.ingest.accept(device_id, [record])

    # two threads for each device: the second delivery of every record is a duplicate or comes first
    threads = [threading.Thread(target=report, args=(device_id,)) for device_id in list(records) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    size = rooms.core.ledger.size()
    leaves = [leaf_hash(data) for _, data in rooms.core.ledger.entries(0, size)]
    assert size == 4 + 4 * 12
    assert rooms.core.ledger.root(size) == MerkleTree(leaves).root()
    for device in devices:
        assert stored(rooms, device) == list(range(1, 13))
        assert forks(rooms, device) == []


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_changed_byte_is_refused_and_changes_nothing(rooms: Rooms, device: RawDevice, data: st.DataObject) -> None:
    envelope = to_bytes(device.chain().next())
    index = data.draw(st.integers(0, len(envelope) - 1))
    mutated = envelope[:index] + bytes([envelope[index] ^ data.draw(st.integers(1, 255))]) + envelope[index + 1 :]
    try:
        parsed = from_bytes(Envelope, mutated)
    except FormatError:
        return

    answer = rooms.core.ingest.accept(device.device_id, [parsed])

    assert (answer.head_seq, answer.refused_code in ("signature", "format")) == (0, True)
    assert rooms.core.ledger.size() == 1


def test_failed_disk_acknowledges_nothing(rooms: Rooms, device: RawDevice) -> None:
    rooms.core.database.close()

    with pytest.raises(StateError):
        rooms.core.ingest.accept(device.device_id, [device.chain().next()])
