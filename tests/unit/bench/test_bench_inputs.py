"""Made-up inputs fit the model they are made for, and a trap is refused."""

from __future__ import annotations

import pytest
from onnx import TensorProto
from tests.fakes import served_models as models

from holdfast.bench.inputs import synthetic_inputs
from holdfast.errors import ModelError
from holdfast.inference.session import ModelSource, load_session
from holdfast.inference.tensors import TensorSpec


@pytest.mark.parametrize(
    "onnx_type", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING]
)
def test_inputs_run(onnx_type: int) -> None:
    session = load_session(ModelSource(models.identity(onnx_type)))

    inputs = synthetic_inputs(session.inputs, 3)

    assert session.run(inputs)["y"].shape == (1, 4)


def test_inputs_are_the_same_for_the_same_seed() -> None:
    specs = [TensorSpec("x", "float32", (None, 8))]

    assert synthetic_inputs(specs, 1)["x"].tobytes() == synthetic_inputs(specs, 1)["x"].tobytes()
    assert synthetic_inputs(specs, 1)["x"].tobytes() != synthetic_inputs(specs, 2)["x"].tobytes()


def test_shape_too_large_is_refused() -> None:
    with pytest.raises(ModelError, match="too large to make up values"):
        synthetic_inputs([TensorSpec("x", "float32", (2**20, 2**20))], 0)
