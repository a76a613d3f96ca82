"""A mailbox in memory with devices behind it that answer at once, and something that kills a run at any step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from holdfast.trust.envelope import Envelope, sign_envelope
from holdfast.trust.keys import PrivateKey
from holdfast.update.payload import make_payload
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.messages import UPDATE_TYPE, RoundOffer, UpdateStatement
from holdfast_federation.rounds.grid import Order, Reply, Ticket


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class Countdown:
    """Kills at the n-th guarded step; counts on after that."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def guard(self, target: object, *names: str) -> None:
        """Let every call of these methods be a step before and a step after."""
        for name in names:
            setattr(target, name, self._guarded(getattr(target, name)))

    def _guarded(self, call: Callable[..., object]) -> Callable[..., object]:
        def guarded(*arguments: object, **named: object) -> object:
            self.step()
            result = call(*arguments, **named)
            self.step()
            return result

        return guarded


class Mailbox:
    """What survives of a SuperLink: replies that wait. A pulled reply is gone for good."""

    def __init__(self, keys: Mapping[str, PrivateKey], count: int) -> None:
        self.keys = dict(keys)
        self.count = count
        self.waiting: dict[str, Reply] = {}
        self.pushed = 0
        self.offline: set[str] = set()
        self.codes: dict[str, str] = {}
        self.losing: set[str] = set()  # devices whose next order is lost on the way
        self.signed: set[tuple[str, bytes]] | None = None  # if set: devices answer an offer once, then with a code
        self.delayed = False  # replies are held back until somebody ordered again; then the last comes first


class FakeGrid:
    """A `Grid` over a mailbox; node keys are the device ids, node ids their position."""

    def __init__(self, mailbox: Mailbox, run_id: int = 1) -> None:
        self._mailbox = mailbox
        self._devices = sorted(mailbox.keys)
        self.ticket = Ticket(run_id, 1, f"token-{run_id}")
        self.is_lost = False
        self.finished: list[bool] = []

    def online(self) -> Mapping[str, int]:
        return {d: n for n, d in enumerate(self._devices) if d not in self._mailbox.offline}

    def push(self, orders: Sequence[Order]) -> list[str]:
        return [self._answer(order) for order in orders]

    def pull(self, message_ids: Sequence[str]) -> list[Reply]:
        ready = [each for each in message_ids if each in self._mailbox.waiting][:1]
        if self._mailbox.delayed:
            ready = self._delayed(message_ids)
        return [self._mailbox.waiting.pop(each) for each in ready]

    def _delayed(self, message_ids: Sequence[str]) -> list[str]:
        if len(message_ids) < 2 * len(self._devices):
            return []
        self._mailbox.delayed = False
        return sorted((each for each in message_ids if each in self._mailbox.waiting), reverse=True)

    def finish(self, *, completed: bool) -> None:
        self.finished.append(completed)

    def _answer(self, order: Order) -> str:
        mailbox = self._mailbox
        device_id = self._devices[order.node_id]
        mailbox.pushed += 1
        message_id = f"m{mailbox.pushed}"
        if device_id in mailbox.losing:
            mailbox.losing.discard(device_id)
            return message_id
        code = mailbox.codes.get(device_id)
        if mailbox.signed is not None:
            code = "HF-ROUND-001" if (device_id, order.offer) in mailbox.signed else code
            mailbox.signed.add((device_id, order.offer))
        envelope = from_bytes(Envelope, order.offer)
        offer = from_bytes(RoundOffer, envelope.payload)
        data = b""
        if offer.handler == "train":
            rng = np.random.default_rng(order.node_id)
            delta = rng.standard_normal(mailbox.count).astype(np.float32)
            data = make_payload(delta, codec=offer.codec, clip=offer.privacy.clip_norm, rng=rng).data
        statement = UpdateStatement(
            device_id=device_id,
            offer_sha256=hashlib.sha256(envelope.payload).digest(),
            run_id=offer.run_id,
            round=offer.round,
            codec=offer.codec if data else "",
            array_sha256=hashlib.sha256(data).digest() if data else b"",
            array_size_bytes=len(data),
            sample_count=10 + order.node_id,
            metrics={"loss": 1.0},
            clip_norm_applied=offer.privacy.clip_norm if data else 0.0,
        )
        signed = to_bytes(sign_envelope(UPDATE_TYPE, to_bytes(statement), mailbox.keys[device_id]))
        mailbox.waiting[message_id] = Reply(message_id, b"", b"", code) if code else Reply(message_id, data, signed)
        return message_id
