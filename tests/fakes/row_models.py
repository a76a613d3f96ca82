"""Models for the question whether rows stay apart: one per operator, and those that mix rows on purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.fakes import served_models
from tests.fakes.served_models import OPSET

from holdfast.inference.example_model import digits_model

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
N = helper.make_node


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


def encoder(width: int = 16, length: int = 4, heads: int = 2) -> bytes:
    """A layer of attention with its constants as exporters write them: reshapes, transposes, batched products."""
    rng = np.random.default_rng(5)
    part = width // heads
    constants: dict[str, np.ndarray] = {
        **{name: rng.standard_normal((width, width)).astype(np.float32) for name in ("wq", "wk", "wv", "wo")},
        "split": np.array([0, length, heads, part]),
        "joined": np.array([-1, length, width]),
        "scale": np.array(part**-0.5, dtype=np.float32),
        "gain": np.ones(width, dtype=np.float32),
    }
    nodes = []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            N("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            N("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            N("Transpose", [f"{name}1"], [name], perm=order),
        ]
    nodes += [
        N("MatMul", ["q", "k"], ["s0"]),
        N("Mul", ["s0", "scale"], ["s1"]),
        N("Softmax", ["s1"], ["s"], axis=-1),
        N("MatMul", ["s", "v"], ["a0"]),
        N("Transpose", ["a0"], ["a1"], perm=[0, 2, 1, 3]),
        N("Reshape", ["a1", "joined"], ["a"]),
        N("MatMul", ["a", "wo"], ["o"]),
        N("Add", ["o", "x"], ["r"]),
        N("LayerNormalization", ["r", "gain"], ["y"]),
    ]
    return model_of(nodes, (length, width), constants)


def convolutional() -> bytes:
    rng = np.random.default_rng(6)
    constants = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        **{name: np.ones(4, dtype=np.float32) for name in ("s", "b", "m", "v")},
        "head": rng.standard_normal((4, 2)).astype(np.float32),
    }
    nodes = [
        N("Conv", ["x", "w"], ["c"], strides=[2, 2]),
        N("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
        N("Relu", ["n"], ["r"]),
        N("GlobalAveragePool", ["r"], ["g"]),
        N("Flatten", ["g"], ["f"]),
        N("MatMul", ["f", "head"], ["y"]),
    ]
    return model_of(nodes, (3, 9, 9), constants)


USUAL = {
    "perceptron": served_models.perceptron(),
    "mlp": mlp((100, 50, 10)),
    "encoder": encoder(),
    "convolutional": convolutional(),
    "digits": digits_model(),
    "two_inputs": served_models.two_in_two_out(),
    "table": served_models.gather(),
}
