"""The scheduler runs what came together as one, in turn, and gives each request the answer it would get alone."""

from __future__ import annotations

import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.scheduling import BUCKETS, QUICK_S, SLOW_S, Lab, ask, quick, traits, value_of

from holdfast.errors import HoldfastError, InferenceError, InvalidTensorError, UnknownModelError
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving.scheduler import SchedulerOptions


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
