"""The pool answers each request by itself and swaps without a gap."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from tests.fakes import served_models as models

from holdfast.errors import InvalidTensorError, UnknownModelError
from holdfast.inference.pool import ModelPool
from holdfast.inference.session import ModelSource, load_session
from holdfast.inference.tensors import TensorRequest, TensorResponse

ONE = np.ones((1, 4), dtype=np.float32)


def pool_with(factor: float) -> ModelPool:
    pool = ModelPool()
    pool.swap("m", "1", load_session(ModelSource(models.scale(factor))))
    return pool


def request(model: str = "m", version: str = "", array: np.ndarray = ONE) -> TensorRequest:
    return TensorRequest(model, version, "id", {"x": array})


def test_pool_answers_good_requests_beside_bad_ones() -> None:
    good, unknown, wrong, again = pool_with(2.0).predict_batch(
        [request(), request("q"), request(array=ONE[0]), request(version="1")]
    )

    assert isinstance(good, TensorResponse)
    assert good.outputs["y"].tolist() == [[2, 2, 2, 2]]
    assert good.request_id == "id"
    assert isinstance(unknown, UnknownModelError)
    assert isinstance(wrong, InvalidTensorError)
    assert isinstance(again, TensorResponse)


@pytest.mark.parametrize(
    ("name", "version", "text"),
    [
        ("q", "", "Request for unknown model: 'q' is not found"),
        ("m", "2", "Request for unknown model: 'm' version 2 is not found"),
    ],
)
def test_pool_names_an_unknown_model_as_clients_expect(name: str, version: str, text: str) -> None:
    with pytest.raises(UnknownModelError) as refused:
        pool_with(1.0).get(name, version)

    assert str(refused.value) == text


def test_pool_serves_the_new_session_from_the_next_request_on() -> None:
    pool = pool_with(1.0)
    held = pool.get("m")

    before = pool.swap("m", "2", load_session(ModelSource(models.scale(3.0))))

    assert before is held
    assert held.session.run({"x": ONE})["y"].tolist() == [[1, 1, 1, 1]]
    (answer,) = pool.predict_batch([request()])
    assert isinstance(answer, TensorResponse)
    assert answer.version == "2"
    assert answer.outputs["y"].tolist() == [[3, 3, 3, 3]]


def test_pool_swapped_under_load_fails_no_request() -> None:
    pool = pool_with(1.0)
    sessions = [load_session(ModelSource(models.scale(float(factor)))) for factor in (1, 2)]
    done = threading.Event()
    wrong: list[object] = []

    def ask() -> None:
        while not done.is_set():
            (answer,) = pool.predict_batch([request()])
            if not isinstance(answer, TensorResponse) or answer.outputs["y"][0, 0] != int(answer.version):
                wrong.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(300):
        pool.swap("m", str(turn % 2 + 1), sessions[turn % 2])
    done.set()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_pool_forgets_a_removed_model() -> None:
    pool = pool_with(1.0)

    assert pool.remove("m") is not None
    assert pool.remove("m") is None
    assert pool.names() == ()
