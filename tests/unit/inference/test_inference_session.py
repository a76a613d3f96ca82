"""A session refuses what the model does not declare, before ONNX Runtime sees it."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto
from tests.fakes import served_models as models

from holdfast.errors import InferenceError, InvalidTensorError, ModelError
from holdfast.inference.session import ModelSession, ModelSource, SessionOptions, load_session

ONE = np.ones((1, 4), dtype=np.float32)


@pytest.fixture
def session() -> ModelSession:
    return load_session(ModelSource(models.perceptron()))


def test_session_answers_as_onnxruntime_does(session: ModelSession) -> None:
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(models.perceptron()).run(None, {"x": x})

    got = session.run({"x": x})

    assert list(got) == ["y"]
    assert np.array_equal(got["y"], expected)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "expected x; got none"),
        ({"z": ONE}, "expected x; got z"),
        ({"x": ONE, "z": ONE}, "expected x; got x, z"),
        ({"x": ONE.astype(np.float64)}, "input 'x': expected float32, got float64"),
        ({"x": ONE[0]}, r"input 'x': expected shape \[\?, 4\], got \[4\]"),
        ({"x": np.ones((1, 5), dtype=np.float32)}, r"expected shape \[\?, 4\], got \[1, 5\]"),
    ],
)
def test_session_refuses_inputs_that_do_not_fit(
    session: ModelSession, inputs: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InvalidTensorError, match=message):
        session.run(inputs)


def test_session_refuses_an_unknown_output(session: ModelSession) -> None:
    with pytest.raises(InvalidTensorError, match="unknown output 'q'; the model has y"):
        session.run({"x": ONE}, ("q",))


def test_session_gives_outputs_in_the_order_asked_for() -> None:
    session = load_session(ModelSource(models.two_in_two_out()))
    a = np.array([1, 2], dtype=np.int64)

    got = session.run({"a": a, "b": a[::-1]}, ("same", "sum"))

    assert list(got) == ["same", "sum"]
    assert got["sum"].tolist() == [3, 3]
    assert got["same"].tolist() == [False, False]


def test_session_reports_a_failure_of_the_model_itself() -> None:
    session = load_session(ModelSource(models.gather()))

    with pytest.raises(InferenceError, match="the model failed on these inputs"):
        session.run({"x": np.array([7], dtype=np.int64)})


def test_session_carries_text_and_refuses_bytes_that_are_not_text() -> None:
    session = load_session(ModelSource(models.identity(TensorProto.STRING, ("n",))))
    words = np.array(["grün".encode(), b"", b"a\0b"], dtype=object)

    assert session.run({"x": words})["y"].tolist() == words.tolist()
    with pytest.raises(InvalidTensorError, match="not UTF-8"):
        session.run({"x": np.array([b"\xff"], dtype=object)})


def test_session_takes_unaligned_and_strided_arrays(session: ModelSession) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), dtype=np.uint8)[1:].view(np.float32).reshape(2, 4)

    assert np.array_equal(session.run({"x": unaligned})["y"], session.run({"x": x})["y"])
    assert np.array_equal(session.run({"x": x[::-1]})["y"], session.run({"x": x[::-1].copy()})["y"])


def test_session_loads_external_weights_from_memory() -> None:
    model, weights = models.with_external_weight()

    session = load_session(ModelSource(model, {"weights.bin": weights}), SessionOptions(2, spinning=True))

    assert session.run({"x": ONE})["y"].tolist() == [[1, 2, 3, 4]]


def test_session_refuses_a_truncated_model() -> None:
    with pytest.raises(ModelError, match="not a model that ONNX Runtime can load"):
        load_session(ModelSource(models.perceptron()[:-7]))


def test_digest_covers_external_weights() -> None:
    model, weights = models.with_external_weight()

    digests = {
        ModelSource(model).digest,
        ModelSource(model, {"weights.bin": weights}).digest,
        ModelSource(model, {"weights.bin": weights[:-1] + b"x"}).digest,
        ModelSource(model, {"other.bin": weights}).digest,
    }

    assert len(digests) == 4
