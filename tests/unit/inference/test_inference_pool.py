"""The pool answers each request by itself and swaps without a gap."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from tests.fakes import served_models as models

from holdfast.errors import InvalidTensorError, UnknownModelError, UnreadyModelError, VersionFormError
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
        ("q", "2", "Request for unknown model: 'q' is not found"),
        ("m", "2", "Request for unknown model: 'm' version 2 is not found"),
        ("m", "0", "Request for unknown model: 'm' version 0 is not found"),
        ("m", str(2**63 - 1), f"Request for unknown model: 'm' version {2**63 - 1} is not found"),
    ],
)
def test_pool_names_an_unknown_model_as_clients_expect(name: str, version: str, text: str) -> None:
    with pytest.raises(UnknownModelError) as refused:
        pool_with(1.0).get(name, version)

    assert str(refused.value) == text


@pytest.mark.parametrize("version", ["two", "1.0", " 1", "+1", "²", "0x1", str(2**63), "9" * 5_000, "-"])
@pytest.mark.parametrize("name", ["m", "q"])
def test_pool_says_that_a_version_is_no_number(name: str, version: str) -> None:
    with pytest.raises(VersionFormError) as refused:
        pool_with(1.0).get(name, version)

    start, end = "failed to get model version from specified version string '", "' (details: stol), version should be "
    assert str(refused.value) == f"{start}{version[:256]}{end}an integral value > 0"


def test_pool_says_that_a_version_is_negative() -> None:
    with pytest.raises(VersionFormError, match=r"invalid model version specified '-1' , version should be an integral"):
        pool_with(1.0).get("m", "-1")


def test_version_of_a_bundle_is_unknown_like_any_other() -> None:
    pool = pool_with(1.0)
    pool.swap("b", "2026.1-rc1", pool.get("m").session)

    with pytest.raises(
        UnknownModelError, match="Request for unknown model: 'b' version 2026-2 is not found"
    ) as refused:
        pool.get("b", "2026-2")

    assert type(refused.value) is UnknownModelError
    assert pool.get("b", "2026.1-rc1").version == "2026.1-rc1"


def test_pool_tells_versions_that_are_known_and_not_served() -> None:
    pool = pool_with(1.0)
    session = pool.get("m").session
    pool.put("m", {"1": session}, unready=("3",))

    for name, version, kind, text in (
        ("m", "3", UnreadyModelError, "'m' version 3 is not at ready state"),
        ("m", "2", UnknownModelError, "'m' version 2 is not found"),
    ):
        with pytest.raises(kind, match=f"Request for unknown model: {text}") as refused:
            pool.get(name, version)
        assert type(refused.value) is kind

    pool.remove("m", unready=("1", "3"))
    with pytest.raises(UnknownModelError, match="Request for unknown model: 'm' has no available versions"):
        pool.get("m")
    pool.put("m", {"3": session})
    assert pool.get("m").version == "3"
    pool.remove("m")
    with pytest.raises(UnknownModelError, match="Request for unknown model: 'm' is not found"):
        pool.get("m", "3")


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
