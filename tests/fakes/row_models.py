"""Models for the question whether rows stay apart: one per operator, and those that mix rows on purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.fakes.served_models import OPSET

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model_of(
    nodes: Sequence[onnx.NodeProto],
    row: Sequence[int] = (4,),
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    element: int = FLOAT,
    out: int = FLOAT,
    opset: int = OPSET,
    batch: str | int = "n",
) -> bytes:
    """A model of these nodes from `x` [batch, *row] to `y`, whose shape ONNX Runtime may find by itself."""
    graph = helper.make_graph(
        list(nodes),
        "rows",
        [helper.make_tensor_value_info("x", element, [batch, *row])],
        [helper.make_tensor_value_info("y", out, None)],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def mlp(sizes: Sequence[int] = (784, 512, 256, 10), seed: int = 0) -> bytes:
    """A perceptron with relu between its layers, weights drawn from `seed`."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    at = "x"
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        constants[f"w{layer}"] = (rng.standard_normal((fan_in, fan_out)) / fan_in**0.5).astype(np.float32)
        constants[f"b{layer}"] = rng.standard_normal(fan_out).astype(np.float32)
        last = layer == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [at, f"w{layer}", f"b{layer}"], ["y" if last else f"h{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{layer}"], [f"a{layer}"]))
        at = f"a{layer}"
    return model_of(nodes, (sizes[0],), constants)
