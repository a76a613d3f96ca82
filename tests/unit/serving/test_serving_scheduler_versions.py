"""Swaps, removal, the end of a server, and who is told: no accepted request is left without an answer."""

from __future__ import annotations

import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.row_models import mlp
from tests.fakes.scheduling import BUCKETS, QUICK_S, SLOW_S, Lab, ask, quick, slow, traits, value_of

from holdfast.errors import StoppingError, UnknownModelError
from holdfast.inference.session import RunStop
from holdfast.inference.tensors import TensorRequest, TensorResponse


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
