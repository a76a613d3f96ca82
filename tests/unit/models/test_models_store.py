"""Slots move only as the table says, and the folder keeps what they name."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import StateError
from holdfast.models import slots as table
from holdfast.models.slots import PHASES, TRANSITIONS, Slot, Slots, move
from holdfast.models.store import ModelStore

EVENTS = sorted({event for _, event in TRANSITIONS})


def slot(number: int, content: bytes = b"blob") -> Slot:
    sha256 = hashlib.sha256(content).hexdigest()
    return Slot(f"{number:064x}", str(number), sha256, len(content), number)


def put(store: ModelStore, content: bytes) -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    store.part_path(sha256).write_bytes(content)
    store.keep(sha256)
    return sha256


def installed(slots: Slots, new: Slot) -> Slots:
    for event in (table.ASSIGNED, table.VERIFIED, table.PASSED, table.SWAPPED):
        slots = move(slots, event, new if event in (table.ASSIGNED, table.VERIFIED) else None)
    return slots


def test_installing_twice_keeps_the_first_as_previous() -> None:
    slots = installed(installed(Slots("m"), slot(1)), slot(2))

    assert (slots.phase, slots.current, slots.previous, slots.candidate) == (table.PROVING, slot(2), slot(1), None)
    assert slots.number == 2


def test_rolling_back_brings_the_previous_one_back() -> None:
    slots = move(installed(installed(Slots("m"), slot(1)), slot(2)), table.ROLLED_BACK)

    assert (slots.phase, slots.current, slots.previous) == (table.IDLE, slot(1), None)
    assert slots.number == 2  # what was tried is not tried again


def test_refusing_keeps_the_current_one_and_remembers_the_number() -> None:
    before = move(installed(Slots("m"), slot(1)), table.CONFIRMED)

    slots = move(move(before, table.ASSIGNED, slot(2)), table.REFUSED)

    assert (slots.phase, slots.current, slots.candidate, slots.number) == (table.IDLE, slot(1), None, 2)


def test_installing_the_same_digest_again_keeps_the_previous_one() -> None:
    slots = installed(installed(installed(Slots("m"), slot(1)), slot(2)), slot(2))

    assert slots.previous == slot(1)


def test_tries_are_counted_per_digest() -> None:
    slots = Slots("m")
    for _ in range(2):
        slots = move(move(slots, table.ASSIGNED, slot(1)), table.VERIFIED, slot(1))

    assert slots.tries == 2
    assert move(slots, table.ASSIGNED, slot(2)).tries == 0


@pytest.mark.parametrize(("phase", "event"), sorted(set(itertools.product(PHASES, EVENTS)) - set(TRANSITIONS)))
def test_event_that_the_table_does_not_know_is_refused(phase: str, event: str) -> None:
    with pytest.raises(StateError, match="cannot happen"):
        move(Slots("m", phase=phase), event, slot(1))


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_no_order_of_events_loses_the_served_model(events: list[str]) -> None:
    slots = move(installed(installed(Slots("m"), slot(1)), slot(2)), table.CONFIRMED)
    numbers = itertools.count(3)

    for event in events:
        # the installer rolls back only with something to go back to, or from an unproven model
        if (slots.phase, event) not in TRANSITIONS or (event == table.ROLLED_BACK and slots.previous is None):
            continue
        number = slots.number
        slots = move(slots, event, slot(next(numbers)) if event == table.ASSIGNED else None)
        assert slots.current is not None
        assert slots.number >= number
        assert (slots.candidate is None) == (slots.phase in (table.IDLE, table.PROVING))


def test_store_keeps_slots_over_a_restart(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.move("m", table.ASSIGNED, slot(4))
    store.move("m", table.REFUSED)

    again = ModelStore(tmp_path)

    assert again.slots("m") == store.slots("m")
    assert again.names() == ("m",)
    assert again.number() == 4
    assert again.slots("never") == Slots("never")


def test_store_collects_only_what_no_slot_names(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    kept, gone = put(store, b"kept"), put(store, b"gone")
    store.part_path("abandoned").write_bytes(b"x")
    store.move("m", table.ASSIGNED, slot(1, b"kept"))

    assert store.collect() == 2
    assert store.has(kept)
    assert not store.has(gone)
    assert store.read(kept) == b"kept"


def test_store_names_a_blob_that_changed_on_disk(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    sha256 = put(store, b"blob")
    (tmp_path / "sha256" / sha256).write_bytes(b"blub")

    with pytest.raises(StateError, match="changed on disk"):
        store.read(sha256)


@pytest.mark.parametrize("defect", ["empty", "cut_off", "unknown_key", "other_model", "unknown_phase"])
def test_store_with_damaged_slots_says_so(tmp_path: Path, defect: str) -> None:
    store = ModelStore(tmp_path)
    store.move("m", table.ASSIGNED, slot(1))
    path = tmp_path / "slots" / "m.json"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut_off": whole[:-5],
            "unknown_key": whole[:-1] + b',"x":1}',
            "other_model": whole.replace(b'"name":"m"', b'"name":"n"'),
            "unknown_phase": whole.replace(b'"fetching"', b'"flying"'),
        }[defect]
    )

    with pytest.raises(StateError, match="have the model assigned again"):
        store.slots("m")


def test_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    ModelStore(tmp_path)
    (tmp_path / "schema_version").write_text("2\n")

    with pytest.raises(StateError, match="use a newer holdfast"):
        ModelStore(tmp_path)


@pytest.mark.parametrize("name", ["", "../m", "a/b", ".hidden", "x" * 129])
def test_store_refuses_a_name_that_is_no_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(StateError, match="is not allowed"):
        ModelStore(tmp_path).slots(name)
