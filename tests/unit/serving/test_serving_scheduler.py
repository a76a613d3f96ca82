"""The scheduler answers each request once: together, in turn, in time, or with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.row_models import mlp
from tests.fakes.scheduling import QUICK_S, SLOW_S, Lab, WatchedSession, traits

from holdfast.errors import (
    DeadlineError,
    HoldfastError,
    InferenceError,
    InvalidTensorError,
    OverloadedError,
    StoppingError,
    UnknownModelError,
)
from holdfast.inference.session import RunStop
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving.scheduler import SchedulerOptions

BUCKETS = (1, 2, 4, 8)


def ask(request_id: str, rows: int = 1, model: str = "m", value: float = 1.0, version: str = "") -> TensorRequest:
    return TensorRequest(model, version, request_id, {"x": np.full((rows, 4), value, dtype=np.float32)})


def quick(lab: Lab, name: str = "m", factor: float = 2.0, version: str = "1") -> WatchedSession:
    return lab.serve(name, models.scale(factor), traits(QUICK_S, BUCKETS), version)


def slow(lab: Lab, name: str = "m", buckets: tuple[int, ...] = ()) -> WatchedSession:
    return lab.serve(name, models.scale(2.0), traits(SLOW_S, buckets))


def value_of(answer: object) -> float:
    assert isinstance(answer, TensorResponse), answer
    return float(answer.outputs["y"][0, 0])


def test_quick_requests_of_one_tick_share_a_run_at_once() -> None:
    lab = Lab()
    session = quick(lab)

    lab.scheduler.submit([lab.pending(ask(str(n), value=n)) for n in range(5)])

    assert session.batches == [8]  # five rows, filled up to a probed size
    assert [value_of(lab.answer(str(n))) for n in range(5)] == [0, 2, 4, 6, 8]
    assert not lab.posted
    assert not lab.shell.jobs


def test_answers_carry_the_rows_the_request_had() -> None:
    lab = Lab()
    quick(lab)

    lab.scheduler.submit([lab.pending(ask(str(rows), rows, value=rows)) for rows in (1, 3, 2)])

    for rows in (1, 3, 2):
        answer = lab.answer(str(rows))
        assert isinstance(answer, TensorResponse)
        assert answer.outputs["y"].tolist() == [[2.0 * rows] * 4] * rows


def test_more_than_the_largest_bucket_runs_in_several() -> None:
    lab = Lab()
    session = quick(lab)

    lab.scheduler.submit([lab.pending(ask(str(n))) for n in range(11)])

    assert session.batches == [8, 4]
    assert all(len(answers) == 1 for answers in lab.answers.values())


def test_a_model_that_may_mix_rows_runs_each_request_alone() -> None:
    lab = Lab()
    session = lab.serve("m", models.scale(2.0), traits(QUICK_S))

    lab.scheduler.submit([lab.pending(ask(str(n))) for n in range(3)])

    assert session.batches == [1, 1, 1]


def test_a_request_larger_than_was_probed_runs_alone() -> None:
    lab = Lab()
    session = quick(lab)

    lab.scheduler.submit([lab.pending(ask("a", 9)), lab.pending(ask("b"))])
    lab.settle()

    assert sorted(session.batches) == [1, 9]


def test_requests_that_want_other_outputs_do_not_share() -> None:
    lab = Lab()
    session = quick(lab)
    named = TensorRequest("m", "", "b", ask("b").inputs, ("y",))

    lab.scheduler.submit([lab.pending(ask("a")), lab.pending(named)])

    assert session.batches == [1, 1]


def test_requests_that_wait_and_want_other_outputs_do_not_share() -> None:
    lab = Lab()
    session = lab.serve("m", models.two_in_two_out(), traits(SLOW_S, BUCKETS, 2))
    inputs = {name: np.array([1], dtype=np.int64) for name in "ab"}
    wanted: list[tuple[str, ...]] = [("sum",), ("same", "sum"), (), ("sum",)]

    lab.scheduler.submit(
        [lab.pending(TensorRequest("m", "", str(n), inputs, outputs)) for n, outputs in enumerate(wanted)]
    )
    lab.settle()

    assert session.batches == [2, 1, 1]
    for n, outputs in enumerate(wanted):
        answer = lab.answer(str(n))
        assert isinstance(answer, TensorResponse)
        assert tuple(answer.outputs) == (outputs or ("sum", "same"))


def test_the_same_bytes_twice_are_computed_twice() -> None:
    lab = Lab()
    session = quick(lab)

    for name in ("a", "b"):
        lab.scheduler.submit([lab.pending(ask(name))])

    assert session.batches == [1, 1]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (TensorRequest("m", "", "bad", {"x": np.ones((1, 5), dtype=np.float32)}), InvalidTensorError),
        (TensorRequest("m", "", "bad", {"x": np.ones((1, 4), dtype=np.float64)}), InvalidTensorError),
        (TensorRequest("m", "", "bad", {}), InvalidTensorError),
        (TensorRequest("m", "", "bad", {"x": np.ones((1, 4), dtype=np.float32)}, ("q",)), InvalidTensorError),
        (TensorRequest("q", "", "bad", {}), UnknownModelError),
        (TensorRequest("m", "7", "bad", {}), UnknownModelError),
    ],
    ids=["shape", "dtype", "no_input", "unknown_output", "unknown_model", "unknown_version"],
)
def test_a_bad_request_gets_its_error_and_no_other_does(bad: TensorRequest, error: type[HoldfastError]) -> None:
    lab = Lab()
    quick(lab)

    lab.scheduler.submit([lab.pending(ask("a")), lab.pending(bad), lab.pending(ask("b"))])

    assert isinstance(lab.answer("bad"), error)
    assert value_of(lab.answer("a")) == value_of(lab.answer("b")) == 2


def test_a_request_that_makes_the_model_fail_costs_the_others_nothing() -> None:
    lab = Lab()
    session = lab.serve("m", models.gather(), traits(QUICK_S, BUCKETS, 1))
    places = [0, 1, 99, 2, 0, 1, 2]

    lab.scheduler.submit(
        [lab.pending(TensorRequest("m", "", str(n), {"x": np.array([at])})) for n, at in enumerate(places)]
    )

    for n, at in enumerate(places):
        answer = lab.answer(str(n))
        if at == 99:
            assert isinstance(answer, InferenceError)
        else:
            assert isinstance(answer, TensorResponse)
            assert answer.outputs["y"].tolist() == [10 * (at + 1)]
    assert len(session.batches) < 2 * len(places)  # halves, not everybody alone


def test_our_own_bug_in_a_run_is_an_internal_error_and_stops_nothing() -> None:
    lab = Lab()
    session = quick(lab)
    session.on_run = lambda inputs, stop: 1 / 0  # type: ignore[assignment, return-value]  # a bug

    lab.scheduler.submit([lab.pending(ask("a"))])
    session.on_run = lambda inputs, stop: None
    lab.scheduler.submit([lab.pending(ask("b"))])

    assert "internal error" in str(lab.answer("a"))
    assert value_of(lab.answer("b")) == 2


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


def test_models_take_turns_on_the_loops_thread() -> None:
    lab = Lab(SchedulerOptions(turn_s=0.0))
    order: list[str] = []
    for name in "ab":
        session = lab.serve(name, models.scale(2.0), traits(QUICK_S))
        session.on_run = lambda inputs, stop, name=name: order.append(name)  # type: ignore[misc]  # a bound default

    batch = [lab.pending(ask(f"a{n}", model="a")) for n in range(3)] + [lab.pending(ask("b0", model="b"))]
    lab.scheduler.submit(batch)
    first_turn = list(order)
    lab.settle()

    assert first_turn == ["a"]  # then the loop has its thread back
    assert order == ["a", "b", "a", "a"]


def test_a_request_made_by_an_answer_waits_for_its_turn() -> None:
    lab = Lab()
    quick(lab)
    depth: list[int] = []

    def again(left: int) -> None:
        if left:
            depth.append(left)
            lab.scheduler.submit([lab.pending(ask(f"again{left}"), then=lambda: again(left - 1))])

    lab.scheduler.submit([lab.pending(ask("first"), then=lambda: again(2_000))])  # deeper than Python's stack
    lab.settle()

    assert len(depth) == 2_000
    assert value_of(lab.answer("again1")) == 2


def test_a_delay_window_lets_requests_gather() -> None:
    lab = Lab(SchedulerOptions(delay_s=0.01))
    session = quick(lab)

    lab.scheduler.submit([lab.pending(ask("a"))])
    lab.clock.advance(0.006)
    lab.scheduler.submit([lab.pending(ask("b"))])
    assert session.batches == []
    lab.clock.advance(0.005)
    lab.ring()
    lab.loop()

    assert session.batches == [2]


def test_a_full_batch_does_not_wait_for_its_window() -> None:
    lab = Lab(SchedulerOptions(delay_s=0.01))
    session = quick(lab)

    lab.scheduler.submit([lab.pending(ask(str(n))) for n in range(8)])

    assert session.batches == [8]


def test_swap_leaves_accepted_requests_with_their_version() -> None:
    lab = Lab()
    slow(lab)
    lab.scheduler.submit([lab.pending(ask("old", version="1")), lab.pending(ask("old too"))])

    lab.serve("m", models.scale(3.0), traits(SLOW_S), version="2")
    lab.scheduler.submit([lab.pending(ask("new"))])
    lab.settle()

    assert [(value_of(lab.answer(name))) for name in ("old", "old too", "new")] == [2, 2, 3]
    answers = [lab.answer(name) for name in ("old", "old too", "new")]
    assert [answer.version for answer in answers if isinstance(answer, TensorResponse)] == ["1", "1", "2"]


def test_rows_of_two_versions_never_share_a_run() -> None:
    lab = Lab()
    old = slow(lab, buckets=BUCKETS)
    lab.scheduler.submit([lab.pending(ask("a"))])
    new = slow(lab, buckets=BUCKETS)
    lab.scheduler.submit([lab.pending(ask("b")), lab.pending(ask("c"))])
    lab.settle()

    assert (old.batches, new.batches) == ([1], [2])


def test_removed_model_still_answers_what_it_accepted() -> None:
    lab = Lab()
    slow(lab)
    lab.scheduler.submit([lab.pending(ask("a"))])

    lab.pool.remove("m")
    lab.scheduler.submit([lab.pending(ask("b"))])
    lab.settle()

    assert value_of(lab.answer("a")) == 2
    assert isinstance(lab.answer("b"), UnknownModelError)


def test_drain_refuses_newcomers_and_finishes_the_rest() -> None:
    lab = Lab()
    slow(lab)
    lab.scheduler.submit([lab.pending(ask("a"))])

    lab.scheduler.drain()
    lab.scheduler.submit([lab.pending(ask("b"))])
    lab.settle()

    assert isinstance(lab.answer("b"), StoppingError)
    assert value_of(lab.answer("a")) == 2
    before_s = lab.clock.monotonic_s()
    lab.scheduler.stop(5.0)
    assert lab.clock.monotonic_s() == before_s  # nothing left to wait for


def test_stop_ends_what_does_not_end_by_itself() -> None:
    lab = Lab()
    session = slow(lab)
    seen: list[bool] = []

    def run_for_ever(_: object, stop: RunStop | None) -> None:
        lab.scheduler.stop(5.0)
        seen.append(stop is not None and stop.is_set)

    session.on_run = run_for_ever
    lab.scheduler.submit([lab.pending(ask("running")), lab.pending(ask("queued"))])
    lab.settle()

    assert seen == [True]
    assert isinstance(lab.answer("running"), StoppingError)
    assert isinstance(lab.answer("queued"), StoppingError)
    assert session.batches == [1]
    assert lab.shell.the_alarm is not None
    assert lab.shell.the_alarm.is_closed


def test_a_client_whose_answer_cannot_be_handed_over_costs_the_others_nothing() -> None:
    lab = Lab()
    quick(lab)

    def broken() -> None:
        raise ConnectionError("gone")

    lab.scheduler.submit([lab.pending(ask("a"), then=broken), lab.pending(ask("b"))])

    assert value_of(lab.answer("b")) == 2


def test_run_answers_in_order_on_the_callers_thread() -> None:
    lab = Lab()
    session = quick(lab)

    answers = lab.scheduler.run([ask("a", value=1), ask("q", model="q"), ask("b", value=2), ask("c", 9, value=3)])

    assert isinstance(answers[1], UnknownModelError)
    assert [value_of(answers[place]) for place in (0, 2, 3)] == [2, 4, 6]
    assert session.batches == [2, 9]
    assert lab.scheduler.run([]) == []


def test_observer_is_told_of_runs_and_refusals() -> None:
    lab = Lab()
    session = slow(lab, buckets=BUCKETS)
    session.on_run = lambda inputs, stop: lab.clock.advance(0.5)
    lab.scheduler.submit([lab.pending(ask("a", 2)), lab.pending(ask("b")), lab.pending(ask("q", model="q"))])
    lab.clock.advance(0.25)

    lab.settle()

    (event,) = lab.counts.batches
    assert (event.model, event.version, event.requests, event.rows, event.failed) == ("m", "1", 2, 3, 0)
    assert event.queue_s == pytest.approx(0.5)  # two requests, a quarter of a second each
    assert event.compute_s == pytest.approx(0.5)
    assert lab.counts.refused == [("q", "", UnknownModelError.code)]


def test_observer_counts_quick_runs_too() -> None:
    lab = Lab()
    quick(lab)

    lab.scheduler.submit([lab.pending(ask(str(n), n + 1)) for n in range(3)])

    (event,) = lab.counts.batches
    assert (event.requests, event.rows, event.failed) == (3, 6, 0)


def test_batched_answers_have_the_bits_of_single_ones() -> None:
    lab = Lab()
    session = lab.serve("m", mlp((16, 32, 4)), traits(QUICK_S, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32), 16))
    rng = np.random.default_rng(3)
    inputs = {str(n): rng.standard_normal((1 + n % 3, 16)).astype(np.float32) * 10.0 ** (n % 7 - 3) for n in range(40)}
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}

    lab.scheduler.submit([lab.pending(TensorRequest("m", "", name, {"x": array})) for name, array in inputs.items()])

    assert max(session.batches) == 32
    for name, array in inputs.items():
        answer = lab.answer(name)
        assert isinstance(answer, TensorResponse)
        assert answer.outputs["y"].tobytes() == session.run({"x": array})["y"].tobytes()
