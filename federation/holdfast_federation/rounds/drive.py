"""Drives one run from its invitation to its candidate: the loop of a run worker.

Every step is the same exchange: a signed offer, orders to the devices that accepted and are online, replies checked
one by one, until all have answered or the deadline is there. State is checkpointed after each of these, so `drive`
can be called again after a kill at any moment and goes on where it was. It ends with a state of the run and a reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from holdfast.clock import Clock
from holdfast.errors import RoundError
from holdfast.trust.envelope import Envelope
from holdfast.trust.keys import PublicKey, Signer
from holdfast.update.layout import FlatLayout
from holdfast.wire.convert import from_bytes
from holdfast.wire.messages import RoundRecord, UpdateStatement
from holdfast_federation.rounds.checkpoint import Checkpoints, Progress, sha256_hex
from holdfast_federation.rounds.grid import Order, Reply, RoundGrid, Ticket
from holdfast_federation.rounds.offers import SignedOffer, make_offer
from holdfast_federation.rounds.runs import (
    COMBINING,
    CONTRIBUTED,
    CREATED,
    EVALUATE_BASE,
    EVALUATE_CANDIDATE,
    EVALUATING,
    FINAL,
    INVITED,
    INVITING,
    LATE,
    ORDERED,
    REJECTED,
    RUNNING,
    TRAIN,
    VANISHED,
    RunSpec,
)
from holdfast_federation.rounds.store import ACCEPTED, RunStore
from holdfast_federation.rounds.strategy import WeightedMean
from holdfast_federation.rounds.verify import Expected, Finding, check_update

logger = logging.getLogger(__name__)

POLL_S = 0.2  # replies of a round; a SuperLink takes about 100 such calls a second
GONE = "gone"  # the node went offline before it answered
NEVER_ONLINE = "never_online"

Floats = NDArray[np.float32]


class LostGrid(Protocol):
    """A `RoundGrid` that knows whether the SuperLink gave it up."""

    @property
    def is_lost(self) -> bool:
        """True: start another one."""


class Grid(RoundGrid, LostGrid, Protocol):
    """What `drive` works with."""


@dataclass(frozen=True, slots=True)
class Base:
    """The bundle that a run starts from: its flat weights (as bytes of weights.bin) and where they may change."""

    weights: bytes
    layout: FlatLayout


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the rounds gave, for the candidate's lineage."""

    weights: bytes
    contributors: tuple[str, ...]
    sample_count: int


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run needs of its surroundings.

    report_key: the key that a device signs with; node_key: PEM of its Flower node key. start_grid: a new mailbox, or
    (with a ticket) the one of before. make_candidate: builds, signs and registers the bundle, returns its digest.
    """

    store: RunStore
    checkpoints: Checkpoints
    signer: Signer
    report_key: Callable[[str], PublicKey]
    node_key: Callable[[str], str]
    start_grid: Callable[[Ticket | None], Grid]
    make_candidate: Callable[[RunSpec, Outcome], str]
    clock: Clock


class Driver:
    """Drives one run. One per process."""

    def __init__(self, run_id: str, base: Base, parts: Parts) -> None:
        self._run_id = run_id
        self._spec = parts.store.get(run_id).spec
        self._base = base
        self._parts = parts
        self._store = parts.store
        self._clock = parts.clock
        self._pause = threading.Event()
        self._grid: Grid | None = None
        self._current_offer: SignedOffer | None = None
        self._progress = parts.checkpoints.load() or Progress(weights=sha256_hex(base.weights))
        # ordered by a process that was killed: the message, or its reply, may have been on a line that broke with it
        self._unsure = set(self._progress.orders)
        self._save(base.weights)

    def drive(self) -> str:
        """Go on until the run is done or failed. Returns the final state."""
        try:
            while self._store.get(self._run_id).state not in FINAL:
                self._advance(self._store.get(self._run_id).state)
        except RoundError as error:
            logger.warning("the run failed", extra={"run_id": self._run_id, "reason": str(error)})
            if self._store.get(self._run_id).state not in FINAL:  # else an operator stopped it
                self._store.move(self._run_id, "fail", reason=str(error)[:500])
        state = self._store.get(self._run_id).state
        if self._grid is not None:
            self._grid.finish(completed=state != "failed")
        self._parts.checkpoints.remove()
        return state

    def _advance(self, state: str) -> None:
        if state == CREATED:
            self._open(TRAIN, self._current(), self._spec.invite_s + self._spec.deadline_s)
            self._store.move(self._run_id, "invite")
        elif state == INVITING:
            self._await_answers()
            self._store.move(self._run_id, "start")
        elif state == RUNNING:
            while self._progress.round <= self._spec.rounds:
                self._train_round()
            self._store.move(self._run_id, "combine")
        elif state == COMBINING:
            digest = self._parts.make_candidate(self._spec, self._outcome())
            self._store.move(self._run_id, "evaluate", candidate_digest=digest)
        elif state == EVALUATING:
            self._evaluate()
            self._store.move(self._run_id, "finish")

    def _await_answers(self) -> None:
        """Wait until every device has answered, or long enough. Raises: RoundError: too few accepted."""
        invited_until_ns = self._progress.deadline_utc_ns - round(self._spec.deadline_s * 1e9)
        while True:
            self._store.take_answers(self._run_id)
            answers = [member.answer for member in self._store.members(self._run_id)]
            waiting = answers.count(INVITED)
            if not waiting or self._clock.utc_ns() >= invited_until_ns:
                break
            self._clock.wait(self._pause, POLL_S)
        accepted = answers.count(ACCEPTED)
        if accepted < self._spec.minimum_devices:
            reasons = sorted({m.reason_code for m in self._store.members(self._run_id) if m.reason_code})
            said = f" ({', '.join(reasons)})" if reasons else ""
            raise RoundError(
                f"{accepted} of {len(answers)} devices accepted, at least {self._spec.minimum_devices} are needed; "
                f"{answers.count('refused')} refused{said}, {waiting} did not answer"
            )

    def _train_round(self) -> None:
        number = self._progress.round
        self._exchange(TRAIN, self._current())
        progress = self._progress
        if len(progress.contributed) < self._spec.quorum:
            reason = f"round {number}: {len(progress.contributed)} updates, the quorum is {self._spec.quorum}"
            self._enter_round("failed", reason, b"")
            raise RoundError(reason)
        mean = WeightedMean.resume(self._parts.checkpoints.array(progress.sums), progress.sample_count)
        flat = np.frombuffer(self._current(), dtype="<f4")
        weights = self._base.layout.add_delta(flat, mean.result()).tobytes()
        self._enter_round("aggregated", "", hashlib.sha256(weights).digest())
        self._close_step(
            round=number + 1,
            weights=sha256_hex(weights),
            contributors=tuple(sorted({*progress.contributors, *progress.contributed})),
            total_samples=progress.sample_count,
            arrays=(weights,),
        )

    def _evaluate(self) -> None:
        """Base and candidate on the same devices' hold-out data. Too few answers are seen, but fail nothing."""
        last = self._spec.rounds
        if self._progress.step in (TRAIN, EVALUATE_BASE):
            self._change(step=EVALUATE_BASE, round=last)
            self._exchange(EVALUATE_BASE, self._base.weights)
            self._close_step(round=last, step=EVALUATE_CANDIDATE)
        self._exchange(EVALUATE_CANDIDATE, self._current())
        self._close_step(round=last, step=EVALUATE_CANDIDATE)

    def _exchange(self, step: str, weights: bytes) -> None:
        """One offer to all that accepted; returns when all have answered, or at the deadline."""
        if not self._progress.offer:
            self._open(step, weights, self._spec.deadline_s)
        self._enter()
        join_until_ns = self._clock.utc_ns() + round(self._spec.join_s * 1e9)
        while self._clock.utc_ns() < self._progress.deadline_utc_ns:
            if self._store.get(self._run_id).state in FINAL:
                raise RoundError("the run was stopped")
            grid = self._ensure_grid(step, weights)
            try:
                waiting = self._order(grid, weights)
                replies = grid.pull(tuple(self._progress.orders))
                for reply in replies:
                    self._take(reply)
                if not replies:
                    self._order_again(grid, weights)
            except RoundError:
                if not grid.is_lost:
                    raise
                continue  # the SuperLink gave the mailbox up: a new one is made, until the deadline
            joining = waiting - set(self._progress.absent) and self._clock.utc_ns() < join_until_ns
            if not self._progress.orders and not joining:
                break
            self._clock.wait(self._pause, POLL_S)
        signed = self._signed()
        for device_id in sorted(set(self._progress.orders.values())):
            self._store.mark(signed, device_id, LATE)
        for device_id in self._missing():
            self._store.mark(signed, device_id, VANISHED, NEVER_ONLINE)
        # waited for once: in later steps such a device is asked if it is there, and not waited for
        self._change(absent=tuple(self._missing()))

    def _order(self, grid: Grid, weights: bytes) -> set[str]:
        """Send to those that are online and have no order yet. Returns those that are still missing."""
        missing = self._missing()
        if not missing:
            return set()
        online = grid.online()
        for device_id in missing:
            if self._push(grid, device_id, online, weights):
                self._store.mark(self._signed(), device_id, ORDERED)
        return set(self._missing())

    def _order_again(self, grid: Grid, weights: bytes) -> None:
        """Send the open orders of a killed process once more. A device answers an offer once, however often asked."""
        waiting = {each: device for each, device in self._progress.orders.items() if each in self._unsure}
        if not waiting:
            return
        online = grid.online()
        for message_id, device_id in waiting.items():
            if self._push(grid, device_id, online, weights):
                self._unsure.discard(message_id)

    def _push(self, grid: Grid, device_id: str, online: Mapping[str, int], weights: bytes) -> bool:
        """One order of the open step to a device, if it is online. Returns whether it was sent."""
        node_id = online.get(self._parts.node_key(device_id))
        if node_id is None:
            return False
        signed = self._signed()
        ttl_s = max(1.0, (self._progress.deadline_utc_ns - self._clock.utc_ns()) / 1e9)
        message_id = grid.push([Order(node_id, signed.offer.handler, weights, signed.envelope, ttl_s)])[0]
        if message_id:
            self._change(orders={**self._progress.orders, message_id: device_id})
        return bool(message_id)

    def _missing(self) -> list[str]:
        """Devices that accepted and have neither an order nor an end of this step."""
        settled = {*self._progress.done, *self._progress.orders.values()}
        members = self._store.members(self._run_id)
        return [m.device_id for m in members if m.answer == ACCEPTED and m.device_id not in settled]

    def _take(self, reply: Reply) -> None:
        """Check one reply, add it in, checkpoint, record: in this order, so that a kill never counts it twice."""
        device_id = self._progress.orders.get(reply.message_id)
        if device_id is None:
            return
        others = {each: of for each, of in self._progress.orders.items() if each != reply.message_id}
        if reply.error and device_id in others.values():  # the other of two equal orders: one of them is answered
            self._change(orders=others)
            return
        signed = self._signed()
        expected = Expected(
            device_id=device_id,
            report_key=self._parts.report_key(device_id),
            offer=signed.offer,
            offer_sha256=signed.sha256,
            count=self._base.layout.trainable_element_count,
        )
        finding = check_update(reply, expected)
        orders = {each: of for each, of in others.items() if of != device_id}
        state = CONTRIBUTED if finding.accepted else VANISHED if finding.reason_code == GONE else REJECTED
        entry = {"device_id": device_id, "state": state, "update": reply.statement.hex(), **_short(finding)}
        self._progress = dataclasses.replace(
            self._progress, orders=orders, done=(*self._progress.done, device_id), entry=entry
        )
        if finding.accepted:
            self._add(device_id, finding)
        else:
            logger.warning("an update was not taken", extra={"device_id": device_id, "reason": finding.reason_code})
            self._save()
        self._store.enter_update(signed, device_id, state, finding)

    def _enter(self) -> None:
        """After a restart: what was found last may not have reached the database."""
        entry = self._progress.entry
        if entry:
            envelope = bytes.fromhex(entry["update"]) if entry["statement"] else b""
            statement = None
            if envelope:
                statement = from_bytes(UpdateStatement, from_bytes(Envelope, envelope).payload)
            finding = Finding(entry["reason_code"], statement, envelope, norm=float(entry["norm"]))
            self._store.enter_update(self._signed(), entry["device_id"], entry["state"], finding)

    def _add(self, device_id: str, finding: Finding) -> None:
        """Add an accepted update to the sums and checkpoint."""
        progress = dataclasses.replace(self._progress, contributed=(*self._progress.contributed, device_id))
        arrays: tuple[bytes, ...] = ()
        if finding.delta is not None and finding.statement is not None:
            mean = WeightedMean(finding.delta.size)
            if progress.sums:
                mean = WeightedMean.resume(self._parts.checkpoints.array(progress.sums), progress.sample_count)
            mean.add(finding.delta, finding.statement.sample_count)
            arrays = (mean.sums.tobytes(),)
            progress = dataclasses.replace(progress, sums=sha256_hex(arrays[0]), sample_count=mean.weight)
        self._progress = progress
        self._save(*arrays)

    def _open(self, step: str, weights: bytes, window_s: float) -> None:
        """Sign and publish the offer of a step. Those that contributed to it already are not asked again."""
        now = self._clock.utc_ns()
        window = (now, now + round(window_s * 1e9))
        number = min(self._progress.round, self._spec.rounds)
        signed = make_offer(self._spec, step, number, weights, window, self._parts.signer)
        members = self._store.members(self._run_id)
        devices = [m.device_id for m in members if m.answer in (INVITED, ACCEPTED)]
        self._store.open_offer(signed, devices)
        kept = self._progress.contributed
        self._change(offer=signed.sha256.hex(), step=step, deadline_utc_ns=window[1], orders={}, done=kept, entry={})

    def _ensure_grid(self, step: str, weights: bytes) -> Grid:
        """The mailbox; a new one, with a new offer for who has not contributed yet, if the SuperLink gave it up."""
        if self._grid is not None and not self._grid.is_lost:
            return self._grid
        ticket = self._progress.ticket if self._grid is None else None
        self._grid = self._parts.start_grid(ticket)
        if self._grid.ticket != self._progress.ticket:
            had_orders = bool(self._progress.orders)
            self._change(ticket=self._grid.ticket, orders={})
            if had_orders:
                logger.warning("the mailbox was lost; the open step is offered again", extra={"step": step})
                self._open(step, weights, self._spec.deadline_s)
        return self._grid

    def _close_step(self, *, arrays: tuple[bytes, ...] = (), **changes: object) -> None:
        empty = Progress()
        self._progress = dataclasses.replace(
            self._progress,
            **{
                "offer": "",
                "deadline_utc_ns": 0,
                "orders": empty.orders,
                "done": (),
                "contributed": (),
                "sums": "",
                "sample_count": 0,
                "entry": {},
                **changes,
            },  # type: ignore[arg-type]  # fields of Progress, by name
        )
        self._save(*arrays)

    def _enter_round(self, outcome: str, reason: str, weights_sha256: bytes) -> None:
        members = self._store.members(self._run_id)
        record = RoundRecord(
            run_id=self._run_id,
            round=self._progress.round,
            outcome=outcome,
            reason=reason,
            invited=tuple(m.device_id for m in members),
            accepted=tuple(m.device_id for m in members if m.answer == ACCEPTED),
            contributed=tuple(sorted(self._progress.contributed)),
            weights_sha256=weights_sha256,
            sample_count=self._progress.sample_count,
        )
        self._store.enter_round(record)

    def _signed(self) -> SignedOffer:
        """The offer of the open step."""
        if self._current_offer is None or self._current_offer.sha256.hex() != self._progress.offer:
            self._current_offer = self._store.offer(bytes.fromhex(self._progress.offer))
        return self._current_offer

    def _outcome(self) -> Outcome:
        return Outcome(self._current(), self._progress.contributors, self._progress.total_samples)

    def _current(self) -> bytes:
        return self._parts.checkpoints.array(self._progress.weights)

    def _change(self, **changes: object) -> None:
        self._progress = dataclasses.replace(self._progress, **changes)  # type: ignore[arg-type]  # fields by name
        self._save()

    def _save(self, *arrays: bytes) -> None:
        self._parts.checkpoints.save(self._progress, *arrays)


def _short(finding: Finding) -> dict[str, str]:
    return {
        "reason_code": finding.reason_code,
        "norm": repr(finding.norm),
        "statement": "yes" if finding.statement is not None else "",
    }
