"""The check-in loop: tells what is in service, hands on what comes, and survives every known failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.fakes.clock import FakeClock

from holdfast.errors import LinkError, StateError
from holdfast.link.check_in import LONGEST_PAUSE_S, CheckIn, Handlers, NoAssignments, NoOffers
from holdfast.trust.envelope import Envelope
from holdfast.wire.messages import AssignmentDelivery, CheckInRequest, CheckInResponse

OFFER = Envelope("offer", b"payload", ())
DELIVERY = AssignmentDelivery(Envelope("assignment", b"payload", ()))


class Line:
    def __init__(self, clock: FakeClock, *, server_ahead_ns: int = 0) -> None:
        self.requests: list[CheckInRequest] = []
        self.down = False
        self.next_ms = 0
        self._clock = clock
        self._ahead_ns = server_ahead_ns

    def check_in(self, request: CheckInRequest) -> CheckInResponse:
        if self.down:
            raise LinkError("down")
        self.requests.append(request)
        self._clock.advance(1.0)
        server_ns = self._clock.utc_ns() + self._ahead_ns
        self._clock.advance(1.0)
        return CheckInResponse(server_ns, (DELIVERY,), (OFFER,), next_check_in_ms=self.next_ms)


class Models:
    def __init__(self) -> None:
        self.handled: list[Sequence[AssignmentDelivery]] = []

    def handle(self, deliveries: Sequence[AssignmentDelivery]) -> None:
        self.handled.append(deliveries)
        raise StateError("the disk is full")

    def active(self) -> Mapping[str, str]:
        return {"digits": "ab" * 32}

    def number(self) -> int:
        return 7


class Rounds:
    def __init__(self) -> None:
        self.handled: list[Sequence[Envelope]] = []

    def handle(self, offers: Sequence[Envelope]) -> None:
        self.handled.append(offers)


def make(line: Line, clock: FakeClock, models: Models, rounds: Rounds) -> tuple[CheckIn, list[int]]:
    offsets: list[int] = []
    return CheckIn(line, Handlers(models, rounds), lambda: "digest", offsets.append, 30.0, clock), offsets


def test_what_is_in_service_is_told_and_what_comes_is_handed_on_even_if_a_handler_fails() -> None:
    clock, models, rounds = FakeClock(), Models(), Rounds()
    line = Line(clock, server_ahead_ns=5_000_000_000)
    check_in, offsets = make(line, clock, models, rounds)

    pause_s = check_in.step()

    request = line.requests[0]
    assert (request.active, request.policy_digest, request.assignment_number) == ({"digits": "ab" * 32}, "digest", 7)
    assert models.handled == [(DELIVERY,)]
    assert rounds.handled == [(OFFER,)]
    assert offsets == [5_000_000_000]
    assert 27.0 <= pause_s <= 33.0


def test_the_coordinators_wish_is_heeded_within_bounds() -> None:
    clock = FakeClock()
    line = Line(clock)
    check_in, _ = make(line, clock, Models(), Rounds())

    line.next_ms = 2_000
    assert 1.8 <= check_in.step() <= 2.2
    line.next_ms = 1
    assert check_in.step() >= 0.18


def test_failures_pause_longer_up_to_a_cap() -> None:
    clock = FakeClock()
    line = Line(clock)
    line.down = True
    check_in, _ = make(line, clock, Models(), Rounds())

    pauses = [check_in.step() for _ in range(100)]

    assert pauses[0] <= 60.0
    assert max(pauses) <= LONGEST_PAUSE_S


def test_a_device_without_models_or_training_passes_over() -> None:
    assert (NoAssignments().active(), NoAssignments().number()) == ({}, 0)
    NoAssignments().handle((DELIVERY,))
    NoOffers().handle((OFFER,))
