"""bfloat16: numpy cannot hold it, ONNX Runtime can; its bytes go there and back unchanged, alone or beside others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.fakes import served_models as models

from holdfast.errors import InvalidTensorError
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSource, load_session
from holdfast.inference.tensors import BFLOAT16, dtype_name
from holdfast.inference.trial import run_trial


def cast_both_ways() -> bytes:
    """wide = float32(narrow), narrowed = bfloat16(single)."""
    nodes = [
        helper.make_node("Cast", ["narrow"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["single"], ["narrowed"], to=TensorProto.BFLOAT16),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "casts",
        [value("narrow", TensorProto.BFLOAT16, ["n"]), value("single", TensorProto.FLOAT, ["n"])],
        [value("wide", TensorProto.FLOAT, ["n"]), value("narrowed", TensorProto.BFLOAT16, ["n"])],
    )
    made: bytes = onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    return made


def narrow(values: list[float]) -> np.ndarray:
    """The upper halves of float32 numbers."""
    return (np.array(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)


def test_bytes_of_each_element_come_back() -> None:
    session = load_session(ModelSource(models.identity(TensorProto.BFLOAT16)))
    x = np.arange(65_536, dtype=np.uint16).view(BFLOAT16).reshape(-1, 4)

    y = session.run({"x": x})["y"]

    assert dtype_name(y) == "bfloat16"
    assert y.tobytes() == x.tobytes()
    assert y.shape == x.shape


def test_values_are_the_numbers_that_they_stand_for() -> None:
    session = load_session(ModelSource(cast_both_ways()))
    numbers = [1.0, -0.5, 3.0]

    got = session.run({"narrow": narrow(numbers), "single": np.array(numbers, dtype=np.float32)})

    assert got["wide"].tolist() == numbers
    assert got["narrowed"].tobytes() == narrow(numbers).tobytes()
    assert session.run({"narrow": narrow([]), "single": np.empty(0, np.float32)}, ("narrowed",))["narrowed"].shape == (
        0,
    )


def test_sixteen_bit_integers_are_not_taken_for_it() -> None:
    session = load_session(ModelSource(models.identity(TensorProto.BFLOAT16)))

    with pytest.raises(InvalidTensorError, match="expected bfloat16, got uint16"):
        session.run({"x": np.zeros((1, 4), dtype=np.uint16)})


def test_model_passes_its_trial_and_is_measured_without_mixing() -> None:
    source = ModelSource(models.identity(TensorProto.BFLOAT16))

    assert run_trial(source).probe == "ok"
    assert not prepare_session(source).traits.mixing.is_allowed
