"""Small ONNX models for tests, made by hand with the `onnx` package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper


def classifier(
    nodes: Sequence[NodeProto],
    weights: Mapping[str, np.ndarray],
    *,
    inputs: Mapping[str, tuple[int | str, ...]],
    outputs: Sequence[str] = ("logits",),
    opset: int = 20,
    element_type: int = TensorProto.FLOAT,
) -> bytes:
    """A model of these nodes; outputs are float32[?, ?], inputs as given (a text axis is dynamic)."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, element_type, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (None, None)) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10 if opset < 24 else 11
    ).SerializeToString()


def he_mlp(sizes: Sequence[int], seed: int = 0, *, softmax: bool = False, opset: int = 20) -> bytes:
    """An MLP of Gemm (transB) and Relu with He initialisation; parameters `layer<i>.weight` and `layer<i>.bias`."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    nodes: list[NodeProto] = []
    value = "input"
    last = len(sizes) - 2
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        weight, bias = f"layer{index}.weight", f"layer{index}.bias"
        weights[weight] = (rng.standard_normal((fan_out, fan_in)) * np.sqrt(2 / fan_in)).astype(np.float32)
        weights[bias] = np.zeros(fan_out, np.float32)
        made = "logits" if index == last else f"hidden{index}"
        nodes.append(helper.make_node("Gemm", [value, weight, bias], [made], name=f"gemm{index}", transB=1))
        if index != last:
            nodes.append(helper.make_node("Relu", [made], [f"active{index}"], name=f"relu{index}"))
            made = f"active{index}"
        value = made
    output = "logits"
    if softmax:
        output = "probabilities"
        nodes.append(helper.make_node("Softmax", ["logits"], [output], name="softmax", axis=-1))
    return classifier(nodes, weights, inputs={"input": ("batch", sizes[0])}, outputs=[output], opset=opset)
