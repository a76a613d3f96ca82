"""The operators that stand in for those of ONNX's reference evaluator give what the runtime gives."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from holdfast.autodiff.reference_operators import OPERATORS

RNG = np.random.default_rng(4)
node = helper.make_node


def pool(**attributes: object) -> NodeProto:
    return node("AveragePool", ["x"], ["y"], **attributes)


PLACES = np.array([[[0, 2], [1, 1]]])
POOLS = {
    "plain": pool(kernel_shape=[2, 2], strides=[2, 2]),
    "padded": pool(kernel_shape=[3, 3], pads=[1, 0, 1, 2]),
    "padding_counted": pool(kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "rounded_up": pool(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "rounded_up_and_counted": pool(
        kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0], ceil_mode=1, count_include_pad=1
    ),
    "kernel_larger_than_the_image": pool(kernel_shape=[8, 8], strides=[8, 8], ceil_mode=1, count_include_pad=1),
    "same": pool(kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
    "dilated": pool(kernel_shape=[2, 2], dilations=[2, 2]),
}
PICKS = {
    "gather_fewer_places": node("GatherElements", ["x", "i"], ["y"], axis=2),
    "gather_axis_0": node("GatherElements", ["x", "i"], ["y"]),
    "scatter": node("ScatterElements", ["x", "i", "u"], ["y"], axis=-1),
    "scatter_add": node("ScatterElements", ["x", "i", "u"], ["y"], axis=2, reduction="add"),
    "scatter_max": node("ScatterElements", ["x", "i", "u"], ["y"], axis=2, reduction="max"),
}


@pytest.mark.parametrize("name", [*POOLS, *PICKS])
def test_operator_gives_what_the_runtime_gives(name: str) -> None:
    asked = (POOLS | PICKS)[name]
    shape = (2, 3, 5, 5) if name in POOLS else (2, 4, 3)
    places = np.minimum(PLACES, 1) if name == "gather_axis_0" else PLACES
    feeds = {"x": RNG.standard_normal(shape).astype(np.float32), "i": places, "u": np.ones((1, 2, 2), np.float32)}
    feeds = {key: feeds[key] for key in asked.input}
    kinds = {"x": TensorProto.FLOAT, "i": TensorProto.INT64, "u": TensorProto.FLOAT}
    graph = helper.make_graph(
        [asked],
        "one",
        [helper.make_tensor_value_info(key, kinds[key], value.shape) for key, value in feeds.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    (got,) = ReferenceEvaluator(model, new_ops=list(OPERATORS)).run(None, feeds)

    np.testing.assert_allclose(got, session.run(None, feeds)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [None, [4, 4, 4], [2, 4, 1]], ids=["whole", "equal", "short"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_operator_ends_each_row_where_the_runtime_does(
    operator: str, gates: int, direction: str, lengths: list[int] | None
) -> None:
    ways, states = 2 if direction == "bidirectional" else 1, ["h", "c"] if operator == "LSTM" else ["h"]
    shapes = {"x": (4, 3, 2), "w": (ways, gates * 2, 2), "r": (ways, gates * 2, 2), "b": (ways, gates * 4)}
    shapes |= dict.fromkeys(states, (ways, 3, 2)) | ({"p": (ways, 6)} if operator == "LSTM" else {})
    feeds = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    if lengths is not None:
        feeds["n"] = np.array(lengths, np.int32)
    names = ["x", "w", "r", "b", "n" if lengths is not None else "", *states, *(["p"] if operator == "LSTM" else [])]
    outputs = ["y", *(f"y_{state}" for state in states)]
    graph = helper.make_graph(
        [node(operator, names, outputs, hidden_size=2, direction=direction)],
        "one",
        [
            helper.make_tensor_value_info(name, TensorProto.INT32 if name == "n" else TensorProto.FLOAT, value.shape)
            for name, value in feeds.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    got = ReferenceEvaluator(model, new_ops=list(OPERATORS)).run(None, feeds)

    for found, expected in zip(got, session.run(None, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
