"""The slots of one model as a value, and every move between their phases as one table.

    phase     candidate slot holds                         what a power cut here leads to
    IDLE      nothing                                      the current model is served
    FETCHING  what is being fetched                        the current model; the fetch goes on where it stopped
    STAGED    a verified bundle on disk                    the current model; the trial is run again, MAX_TRIES times
    TRIED     a bundle that passed its trial               the current model; as STAGED
    PROVING   nothing: it is current, the old is previous  the new model, MAX_STARTS times, then the previous one

`starts` counts the starts of the process since a model was last confirmed healthy, in any phase: a model that brings
the process down is rolled back even long after it was installed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.errors import StateError

IDLE, FETCHING, STAGED, TRIED, PROVING = "idle", "fetching", "staged", "tried", "proving"
PHASES = (IDLE, FETCHING, STAGED, TRIED, PROVING)

ASSIGNED = "assigned"  # a newer assignment: fetch its bundle
VERIFIED = "verified"  # fetched, and all conditions of activation hold
PASSED = "passed"  # the trial in a child process
SWAPPED = "swapped"  # the candidate is served from now on
CONFIRMED = "confirmed"  # served without harm for a while
REFUSED = "refused"  # the candidate will not be served
STARTED = "started"  # the process starts and is about to load the current model
ROLLED_BACK = "rolled_back"  # the previous model takes the place of the current one

MAX_STARTS = 5  # unconfirmed starts before the previous model comes back; operators restart things, too
MAX_TRIES = 3  # trials of one candidate; more often only a machine that dies with it gets here


@dataclass(frozen=True, slots=True)
class Slot:
    """One bundle in the store. `ancestor_blob_sha256` is empty unless it is a candidate of a federated run."""

    digest: str
    version: str
    blob_sha256: str
    blob_size_bytes: int
    number: int
    ancestor_blob_sha256: str = ""
    ancestor_blob_size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Slots:
    """Everything that must survive of one model. `number`: the newest assignment that was carried out or refused."""

    name: str
    phase: str = IDLE
    current: Slot | None = None
    candidate: Slot | None = None
    previous: Slot | None = None
    starts: int = 0
    tries: int = 0
    number: int = 0


Effect = Callable[[Slots, Slot | None], Slots]


def move(slots: Slots, event: str, slot: Slot | None = None) -> Slots:
    """The slots after `event`. `slot` is the new candidate for ASSIGNED and VERIFIED, and unused otherwise.

    Raises:
        StateError: this event cannot happen in this phase; nothing is changed.
    """
    row = TRANSITIONS.get((slots.phase, event))
    if row is None:
        raise StateError(f"model {slots.name!r} is {slots.phase}; {event!r} cannot happen to it now")
    phase, effect = row
    return dataclasses.replace(effect(slots, slot), phase=phase)


def _nothing(slots: Slots, _slot: Slot | None) -> Slots:
    return slots


def _assign(slots: Slots, slot: Slot | None) -> Slots:
    if slot is None:
        raise AssertionError("an assignment brings a slot")
    same = slots.candidate is not None and slots.candidate.digest == slot.digest
    return dataclasses.replace(slots, candidate=slot, tries=slots.tries if same else 0)


def _stage(slots: Slots, slot: Slot | None) -> Slots:
    # counted before the trial, so that a trial which takes the machine down is counted too
    return dataclasses.replace(slots, candidate=slot or slots.candidate, tries=slots.tries + 1)


def _swap(slots: Slots, _slot: Slot | None) -> Slots:
    if slots.candidate is None:
        raise AssertionError("nothing to swap in")
    same = slots.current is not None and slots.current.digest == slots.candidate.digest
    return dataclasses.replace(
        slots,
        current=slots.candidate,
        previous=slots.previous if same else slots.current,
        candidate=None,
        number=slots.candidate.number,
        starts=0,
        tries=0,
    )


def _refuse(slots: Slots, _slot: Slot | None) -> Slots:
    number = slots.number if slots.candidate is None else slots.candidate.number
    return dataclasses.replace(slots, candidate=None, tries=0, number=max(slots.number, number))


def _confirm(slots: Slots, _slot: Slot | None) -> Slots:
    return dataclasses.replace(slots, starts=0)


def _start(slots: Slots, _slot: Slot | None) -> Slots:
    return dataclasses.replace(slots, starts=slots.starts + 1)


def _roll_back(slots: Slots, _slot: Slot | None) -> Slots:
    return dataclasses.replace(slots, current=slots.previous, previous=None, starts=0)


TRANSITIONS: dict[tuple[str, str], tuple[str, Effect]] = {
    (IDLE, ASSIGNED): (FETCHING, _assign),
    (FETCHING, ASSIGNED): (FETCHING, _assign),
    (STAGED, ASSIGNED): (FETCHING, _assign),
    (TRIED, ASSIGNED): (FETCHING, _assign),
    (PROVING, ASSIGNED): (FETCHING, _assign),  # a newer assignment need not wait for the last one to prove itself
    (FETCHING, VERIFIED): (STAGED, _stage),
    (STAGED, PASSED): (TRIED, _nothing),
    (TRIED, SWAPPED): (PROVING, _swap),
    (PROVING, CONFIRMED): (IDLE, _confirm),
    (FETCHING, REFUSED): (IDLE, _refuse),
    (STAGED, REFUSED): (IDLE, _refuse),
    (TRIED, REFUSED): (IDLE, _refuse),
    (PROVING, ROLLED_BACK): (IDLE, _roll_back),
    (IDLE, ROLLED_BACK): (IDLE, _roll_back),
    (FETCHING, ROLLED_BACK): (FETCHING, _roll_back),
    (STAGED, ROLLED_BACK): (STAGED, _roll_back),
    (TRIED, ROLLED_BACK): (TRIED, _roll_back),
    (IDLE, CONFIRMED): (IDLE, _confirm),
    (FETCHING, CONFIRMED): (FETCHING, _confirm),
    (STAGED, CONFIRMED): (STAGED, _confirm),
    (TRIED, CONFIRMED): (TRIED, _confirm),
    **{(phase, STARTED): (phase, _start) for phase in PHASES},
}
