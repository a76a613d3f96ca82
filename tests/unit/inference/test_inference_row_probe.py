"""The probe sees what no file shows, and what it has shown holds for the requests of a pool."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import served_models as models
from tests.fakes.clock import FakeClock
from tests.fakes.row_models import USUAL
from tests.fakes.scheduling import traits

from holdfast.errors import InferenceError
from holdfast.inference.pool import ModelPool
from holdfast.inference.row_mixing import BUCKETS, Probe, mixing_of, probe_rows
from holdfast.inference.session import ModelSession, ModelSource, RunStop, load_session
from holdfast.inference.tensors import Array, TensorRequest, TensorResponse

SESSION = load_session(ModelSource(models.scale(2.0)))


def verdict(session: ModelSession) -> Probe:
    return mixing_of(models.scale(2.0), session, FakeClock())


class Lying(ModelSession):
    """A session whose answers depend on the batch in a way that no file shows."""

    def __init__(self, how: str) -> None:
        super().__init__(load_session(ModelSource(models.scale(2.0)))._session)
        self.how, self.runs = how, 0

    def run_checked(
        self, inputs: Mapping[str, Array], outputs: tuple[str, ...] = (), stop: RunStop | None = None
    ) -> dict[str, Array]:
        self.runs += 1
        answer = dict(super().run_checked(inputs, outputs, stop))
        rows = len(inputs["x"])
        y = answer["y"]
        if self.how == "last_bit_at_the_last_place" and rows == BUCKETS[-1]:
            y[-1] = np.nextafter(y[-1], np.float32(np.inf))
        elif self.how == "scale_of_the_largest_neighbour":
            y += np.float32(1e-7) * np.nanmax(np.abs(inputs["x"]))
        elif (
            self.how == "only_in_another_order" and rows == 2 and abs(inputs["x"][0]).max() < abs(inputs["x"][1]).max()
        ):
            y[0] = 0
        elif self.how == "nan_spreads" and rows > 1 and np.isnan(inputs["x"]).any():
            y[0] = np.nan
        elif self.how == "wrong_number_of_rows" and rows > 2:
            answer["y"] = y[:-1]
        elif self.how == "fails_in_batches" and rows > 1:
            raise InferenceError("the model failed")
        return answer


@pytest.mark.parametrize(
    "how",
    [
        "last_bit_at_the_last_place",
        "scale_of_the_largest_neighbour",
        "only_in_another_order",
        "nan_spreads",
        "wrong_number_of_rows",
        "fails_in_batches",
    ],
)
def test_probe_sees_what_the_file_does_not_show(how: str) -> None:
    probe = verdict(Lying(how))

    assert not probe.mixing.is_allowed
    assert probe.mixing.buckets == ()


def test_probe_accepts_an_honest_session() -> None:
    assert verdict(Lying("not at all")).mixing.is_allowed


class SlowClock(FakeClock):
    """Each look at it takes a while."""

    def monotonic_s(self) -> float:
        self.advance(0.01)
        return super().monotonic_s()


def test_probe_ends_with_its_budget_and_keeps_what_it_has_shown() -> None:
    session = Lying("not at all")

    probe = probe_rows(session, SlowClock(), 0.3)

    assert max(probe.batch_s) < BUCKETS[-1]
    assert set(probe.mixing.buckets) <= set(probe.batch_s)
    assert probe.run_s == pytest.approx(0.01)


def test_a_batch_that_saves_no_time_is_not_made() -> None:
    clock = FakeClock()

    class PerRow(Lying):
        def run_checked(self, inputs: Mapping[str, Array], *rest: object) -> dict[str, Array]:
            clock.advance(0.0001 * len(inputs["x"]))
            return super().run_checked(inputs)

    probe = probe_rows(PerRow("not at all"), clock)

    assert not probe.mixing.is_allowed
    assert "saves no time" in probe.mixing.reason
    assert probe.run_s == pytest.approx(0.0001)


# --- predict_batch


@pytest.mark.parametrize("name", ["mlp", "convolutional", "digits", "encoder"])
def test_batched_answers_have_the_bits_of_single_ones_in_every_bucket(name: str) -> None:
    session = load_session(ModelSource(USUAL[name]))
    pool = ModelPool()
    spec = session.inputs[0]
    elements = int(np.prod(spec.shape[1:]))
    pool.swap("m", "1", session.measured(traits(1e-5, BUCKETS, elements)))
    rng = np.random.default_rng(11)

    for bucket in BUCKETS:
        scales = 10.0 ** rng.integers(-3, 4, (bucket, *[1] * (len(spec.shape) - 1)))
        x = (rng.standard_normal((bucket, *spec.shape[1:])) * scales).astype(np.float32)
        requests = [TensorRequest("m", "", str(row), {spec.name: x[row : row + 1]}) for row in range(bucket)]
        for request, answer in zip(requests, pool.predict_batch(requests), strict=True):
            assert isinstance(answer, TensorResponse)
            assert answer.request_id == request.request_id
            for output, array in session.run(request.inputs).items():
                assert answer.outputs[output].tobytes() == array.tobytes()


@given(st.lists(st.tuples(st.integers(0, 70), st.booleans(), st.sampled_from(["m", "q"])), max_size=20))
def test_predict_batch_keeps_order_rows_and_errors(asked: list[tuple[int, bool, str]]) -> None:
    pool = ModelPool()
    pool.swap("m", "1", SESSION.measured(traits(1e-5, (1, 2, 4, 8, 64), 4)))
    requests = [
        TensorRequest(model, "", str(n), {"x": np.full((rows, 4 if good else 5), n, dtype=np.float32)})
        for n, (rows, good, model) in enumerate(asked)
    ]

    answers = pool.predict_batch(requests)

    assert len(answers) == len(asked)
    for n, ((rows, good, model), answer) in enumerate(zip(asked, answers, strict=True)):
        assert isinstance(answer, TensorResponse) == (good and model == "m")
        if isinstance(answer, TensorResponse):
            assert answer.request_id == str(n)
            assert answer.outputs["y"].tolist() == [[2.0 * n] * 4] * rows
