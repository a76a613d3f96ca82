"""How an agent takes part in federated rounds: the site's yes, the ground to learn on, the worker's host.

Put together here and handed to the agent, so that a device without samples carries none of it. Judging happens in the
agent; what sees the samples is the worker, which has no network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from holdfast.agent import Offers, Parts
from holdfast.errors import SettingsError
from holdfast.learn.authority import Ground, RoundAuthority
from holdfast.learn.data_source import count_rows
from holdfast.learn.host import RoundHost, WorkerSettings
from holdfast.learn.spending import Spending
from holdfast.lifecycle import Stop, Task
from holdfast.policy.evaluate import OFFER_INVALID, UNKNOWN_MODEL, Decision, OfferFacts, evaluate_offer
from holdfast.trust.durable import make_folder
from holdfast.update.codecs import CODECS
from holdfast.wire.messages import RoundAnswer, RoundOffer

HOLD_OUT = 0.25  # share of the samples that never trains and judges models
WAIT_FOR_MODEL_S = 1.0
FLOAT_BYTES = 4


def join_rounds(parts: Parts) -> Offers:
    """The learning side of a device that has samples; nothing for one that has none.

    Raises:
        SettingsError: a SuperLink without a model. StateError: the account of what rounds have cost is damaged.
        DatasetError: the file of samples cannot be read.
    """
    config = parts.config
    if config.data is None:
        return Offers()
    make_folder(parts.state.rounds)
    judge = _Judge(parts, Spending(parts.state.rounds / "spending.json", parts.clock), count_rows(config.data))
    host = RoundHost(parts.link, _authority(parts, judge), _worker_settings(parts), parts.clock, _needs_machine(parts))
    tasks = [Task("rounds", host.run)]
    if parts.objective is not None:
        tasks.append(Task("objective", parts.objective.watch))
    if config.superlink and not config.superlink_model:
        raise SettingsError("setting 'superlink' needs 'superlink_model': the served model that its apps train")
    if config.superlink:
        tasks.append(Task("unsigned-rounds", lambda stop: _join_unsigned(parts, judge, stop)))
    return Offers(host, tuple(tasks))


@dataclass(frozen=True, slots=True)
class _Judge:
    """Asks the policy with what this device knows, charges what is accepted, and finds the ground."""

    parts: Parts
    spending: Spending
    rows: int

    def decide(self, offer: RoundOffer, signature_holds: bool | None) -> Decision:
        expected_bytes = _expected_bytes(offer)
        if expected_bytes is None:
            return Decision(False, OFFER_INVALID, "the codec is one this device knows")
        spent = self.spending.now()
        facts = OfferFacts(
            now_utc_ns=self.parts.clock.utc_ns(),
            local_rows=self.rows,
            signature_holds=signature_holds,
            rounds_today=spent.rounds,
            epsilon_spent=spent.epsilon,
            bytes_today=spent.bytes_out,
            expected_bytes=expected_bytes,
        )
        decision = evaluate_offer(self.parts.policy.current(), offer, facts)
        if not decision.accepted:
            return decision
        if self.find_ground(offer) is None:  # before anything is charged for it
            return Decision(False, UNKNOWN_MODEL, "the base bundle of the offer is on this device")
        self.spending.charge(offer, expected_bytes)
        return decision

    def find_ground(self, offer: RoundOffer) -> Ground | None:
        slots = self.parts.store.slots(offer.model)
        data = self.parts.config.data
        for slot in (slots.current, slots.previous):
            if slot is not None and data is not None and slot.digest == offer.base_bundle_digest:
                # absolute: the worker has a working folder of its own
                return Ground(self.parts.store.path(slot.blob_sha256).absolute(), data.absolute(), self.rows, HOLD_OUT)
        return None

    def record(self, answer: RoundAnswer) -> None:
        self.parts.journal.append(answer)


def _expected_bytes(offer: RoundOffer) -> int | None:
    """What answering will send: the encoded update; nothing for an evaluation. None: the codec is not known."""
    if offer.handler != "train":
        return 0
    codec = CODECS.get(offer.codec)
    return None if codec is None else codec.encoded_size(offer.weights_size_bytes // FLOAT_BYTES)


def _needs_machine(parts: Parts) -> Callable[[], bool] | None:
    """Whether serving misses its objective, for training to yield to."""
    objective = parts.objective
    return None if objective is None else lambda: objective.is_missed


def _authority(parts: Parts, judge: _Judge) -> RoundAuthority:
    device = parts.device
    return RoundAuthority(
        device.record.device_id, device.report_key, device.pins.run, judge.decide, judge.find_ground, judge.record
    )


def _worker_settings(parts: Parts) -> WorkerSettings:
    return WorkerSettings(node_key=parts.device.flower_key.absolute(), state=parts.state.rounds.absolute())


def _join_unsigned(parts: Parts, judge: _Judge, stop: Stop) -> None:
    """Offer this device's worker to a customer's own SuperLink, once the model it learns is in service."""
    model = parts.config.superlink_model
    while not stop.is_set:
        slot = parts.store.slots(model).current if model else None
        if slot is None:
            stop.wait(WAIT_FOR_MODEL_S)
            continue
        settings = WorkerSettings(
            node_key=parts.device.flower_key.absolute(),
            state=parts.state.rounds.absolute(),
            superlink=parts.config.superlink,
            stay=True,
            unsigned_model=model,
            unsigned_bundle_digest=slot.digest,
        )
        host = RoundHost(parts.link, _authority(parts, judge), settings, parts.clock, _needs_machine(parts))
        host.start_unsigned()
        host.run(stop)
