"""Requests that wait: on a worker, in order, in time, within bounds, or refused with a reason."""

from __future__ import annotations

import pytest
from tests.fakes import served_models as models
from tests.fakes.scheduling import BUCKETS, QUICK_S, SLOW_S, Lab, ask, quick, slow, traits, value_of

from holdfast.errors import DeadlineError, OverloadedError
from holdfast.inference.session import RunStop
from holdfast.inference.tensors import TensorResponse
from holdfast.serving.scheduler import SchedulerOptions


def test_a_slow_model_runs_on_its_worker_and_answers_on_the_loop() -> None:
    lab = Lab()
    slow(lab)

    lab.scheduler.submit([lab.pending(ask("a"))])
    assert lab.answers["a"] == []
    lab.work()
    assert lab.answers["a"] == []
    lab.loop()

    assert value_of(lab.answer("a")) == 2


def test_a_model_that_nobody_could_time_runs_on_its_worker() -> None:
    lab = Lab()
    lab.serve("m", models.scale(2.0), traits(None))

    lab.scheduler.submit([lab.pending(ask("a"))])

    assert len(lab.shell.jobs) == 1


def test_a_large_request_for_a_quick_model_runs_on_its_worker() -> None:
    lab = Lab()
    lab.serve("m", models.scale(2.0), traits(QUICK_S))

    lab.scheduler.submit([lab.pending(ask("large", 1_000)), lab.pending(ask("small"))])

    assert value_of(lab.answer("small")) == 2
    assert len(lab.shell.jobs) == 1


def test_requests_gather_while_the_worker_is_busy() -> None:
    lab = Lab()
    session = slow(lab, buckets=BUCKETS)
    later = [lab.pending(ask(str(n))) for n in range(1, 8)]

    def on_first_run(*_: object) -> None:
        session.on_run = lambda inputs, stop: None
        lab.scheduler.submit(later)

    session.on_run = on_first_run
    lab.scheduler.submit([lab.pending(ask("0"))])
    lab.settle()

    assert session.batches == [1, 8]
    assert {value_of(lab.answer(str(n))) for n in range(8)} == {2}


def test_urgent_requests_go_first_and_equals_in_order_of_arrival() -> None:
    lab = Lab()
    session = slow(lab)
    order: list[float] = []
    session.on_run = lambda inputs, stop: order.append(float(inputs["x"][0, 0]))

    lab.scheduler.submit(
        [lab.pending(ask(str(n), value=n), priority=level) for n, level in enumerate([3, 0, 1, 2, 99, 1])]
    )
    lab.settle()

    assert order == [2, 5, 1, 3, 0, 4]


def test_a_queued_request_past_its_deadline_is_told_at_once() -> None:
    lab = Lab()
    session = slow(lab)
    waiting = [lab.pending(ask("late"), timeout_s=0.15), lab.pending(ask("patient"))]

    def run_long(*_: object) -> None:
        session.on_run = lambda inputs, stop: None
        lab.scheduler.submit(waiting)
        lab.clock.advance(0.2)
        lab.ring()
        lab.loop()
        assert isinstance(lab.answer("late"), DeadlineError)  # while the first still runs

    session.on_run = run_long
    lab.scheduler.submit([lab.pending(ask("first"))])
    lab.settle()

    assert session.batches == [1, 1]
    assert value_of(lab.answer("patient")) == 2
    assert lab.shell.the_alarm is not None
    assert lab.shell.the_alarm.times


def test_a_run_for_which_nobody_waits_any_more_is_ended() -> None:
    lab = Lab()
    session = slow(lab, buckets=BUCKETS)
    stops: list[tuple[bool, bool]] = []

    def run_long(_: object, stop: RunStop | None) -> None:
        assert stop is not None
        lab.clock.advance(1.0)
        lab.ring()
        first = stop.is_set
        lab.clock.advance(1.0)
        lab.ring()
        stops.append((first, stop.is_set))

    session.on_run = run_long
    lab.scheduler.submit([lab.pending(ask("a"), timeout_s=0.9), lab.pending(ask("b"), timeout_s=1.9)])
    lab.settle()

    assert stops == [(False, True)]  # one of the two still waited the first time
    assert isinstance(lab.answer("a"), DeadlineError)
    assert isinstance(lab.answer("b"), DeadlineError)


def test_a_neighbours_deadline_ends_no_run_that_somebody_waits_for() -> None:
    lab = Lab()
    session = slow(lab, buckets=BUCKETS)

    def run_long(*_: object) -> None:
        lab.clock.advance(1.0)
        lab.ring()

    session.on_run = run_long
    lab.scheduler.submit([lab.pending(ask("a"), timeout_s=0.9), lab.pending(ask("b"))])
    lab.settle()

    assert isinstance(lab.answer("a"), DeadlineError)
    assert value_of(lab.answer("b")) == 2


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_request_that_comes_late_is_not_run(is_slow: bool) -> None:
    lab = Lab()
    session = slow(lab) if is_slow else quick(lab)

    lab.scheduler.submit([lab.pending(ask("a"), timeout_s=0.0)])
    lab.settle()

    assert isinstance(lab.answer("a"), DeadlineError)
    assert session.batches == []


def test_overload_is_refused_at_once_with_a_hint() -> None:
    lab = Lab(SchedulerOptions(max_queued=3))
    slow(lab)

    lab.scheduler.submit([lab.pending(ask(str(n))) for n in range(5)])

    for name in ("3", "4"):
        refused = lab.answer(name)
        assert isinstance(refused, OverloadedError)
        assert refused.retry_after_s == pytest.approx(3 * SLOW_S)
    lab.settle()
    assert {value_of(lab.answer(str(n))) for n in range(3)} == {2}
    lab.scheduler.submit([lab.pending(ask("again"))])
    lab.settle()
    assert value_of(lab.answer("again")) == 2


def test_a_queue_too_long_for_a_deadline_refuses_it_at_once() -> None:
    lab = Lab()
    slow(lab)

    lab.scheduler.submit([lab.pending(ask(str(n))) for n in range(4)])
    lab.scheduler.submit([lab.pending(ask("hasty"), timeout_s=0.3), lab.pending(ask("patient"), timeout_s=0.5)])

    assert isinstance(lab.answer("hasty"), OverloadedError)
    assert lab.answers["patient"] == []


@pytest.mark.parametrize(
    "options",
    [SchedulerOptions(max_queued_bytes=40), SchedulerOptions(max_wait_s=0.15)],
    ids=["bytes", "time"],
)
def test_waiting_is_bounded_in_bytes_and_in_time(options: SchedulerOptions) -> None:
    lab = Lab(options)
    slow(lab)

    lab.scheduler.submit([lab.pending(ask(str(n))) for n in range(4)])

    refused = [name for name, answers in lab.answers.items() if answers]
    assert refused == (["2", "3"])
    lab.settle()
    lab.scheduler.submit([lab.pending(ask("again"))])
    lab.settle()
    assert value_of(lab.answer("again")) == 2


def test_overload_leaves_accepted_requests_their_latency() -> None:
    """Ten times more comes than the model can do: those accepted wait no longer than the bound says."""
    lab = Lab(SchedulerOptions(max_wait_s=1.0))
    session = slow(lab)
    came_s: dict[str, float] = {}
    waited_s: dict[str, float] = {}

    def come() -> None:
        for _ in range(10):
            name = str(len(came_s))
            came_s[name] = lab.clock.monotonic_s()
            then = lambda name=name: waited_s.update({name: lab.clock.monotonic_s() - came_s[name]})  # noqa: E731
            lab.scheduler.submit([lab.pending(ask(name), then=then)])

    def run_and_be_asked_again(*_: object) -> None:
        lab.clock.advance(SLOW_S)
        if len(came_s) < 500:
            come()
        lab.loop()

    session.on_run = run_and_be_asked_again
    come()
    lab.settle()

    accepted = [name for name, answers in lab.answers.items() if isinstance(answers[0], TensorResponse)]
    refused = [name for name, answers in lab.answers.items() if isinstance(answers[0], OverloadedError)]
    assert len(accepted) + len(refused) == len(came_s) == 500
    assert len(accepted) >= 50  # the model was never idle
    assert max(waited_s[name] for name in accepted) <= 1.0 + 3 * SLOW_S
    assert max(waited_s[name] for name in refused) == 0
