"""Small ONNX models that tests build when they need one; every name is `x` in and `y` out unless said."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

OPSET = 17


def model_bytes(graph: onnx.GraphProto) -> bytes:
    """A whole model file around a graph."""
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8).SerializeToString()


def identity(onnx_type: int = TensorProto.FLOAT, shape: tuple[int | str, ...] = ("n", 4)) -> bytes:
    """y = x, of any element type."""
    return _single([helper.make_node("Identity", ["x"], ["y"])], onnx_type, onnx_type, shape, shape)


def scale(factor: float) -> bytes:
    """y = factor * x, float32[n, 4]."""
    factor_tensor = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    return _single(nodes, TensorProto.FLOAT, TensorProto.FLOAT, ("n", 4), ("n", 4), [factor_tensor])


def perceptron(seed: int = 0) -> bytes:
    """y = relu(x W1 + b1) W2 + b2, float32[n, 4] -> float32[n, 3], weights drawn from `seed`."""
    rng = np.random.default_rng(seed)
    weights = {"w1": (4, 8), "b1": (8,), "w2": (8, 3), "b2": (3,)}
    tensors = [
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"]),
    ]
    return _single(nodes, TensorProto.FLOAT, TensorProto.FLOAT, ("n", 4), ("n", 3), tensors)


def two_in_two_out() -> bytes:
    """sum = a + b and same = (a == b), int64[n] each."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Equal", ["a", "b"], ["same"])],
        "two",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in ("a", "b")],
        [
            helper.make_tensor_value_info("sum", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("same", TensorProto.BOOL, ["n"]),
        ],
    )
    return model_bytes(graph)


def gather() -> bytes:
    """y = table[x], int64[n]; an index past the 3 rows makes the model itself fail."""
    table = helper.make_tensor("table", TensorProto.INT64, [3], [10, 20, 30])
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    return _single(nodes, TensorProto.INT64, TensorProto.INT64, ("n",), ("n",), [table])


def gather_from_one() -> bytes:
    """y = x[:, 1] of float32[n, 1]: fails on every input."""
    place = helper.make_tensor("place", TensorProto.INT64, [], [1])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 1])
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Gather", ["flat", "place"], ["y"], axis=1),
    ]
    return _single(nodes, TensorProto.FLOAT, TensorProto.FLOAT, ("n", "t"), ("n",), [place, shape])


def hangs_at_first_run() -> bytes:
    """A loop of 2^62 steps over its input: loads at once, never answers."""
    return _single([_endless_loop()], TensorProto.FLOAT, TensorProto.FLOAT, (1,), (1,), _loop_bounds())


def hangs_while_loading() -> bytes:
    """A hundred products of 4096 x 4096 constants, which ONNX Runtime computes while it loads the model."""
    size = helper.make_tensor("size", TensorProto.INT64, [2], [4096, 4096])
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["c0"])]
    nodes += [helper.make_node("MatMul", [f"c{step}", f"c{step}"], [f"c{step + 1}"]) for step in range(100)]
    nodes += [
        helper.make_node("ReduceSum", ["c100"], ["folded"], keepdims=0),
        helper.make_node("Add", ["x", "folded"], ["y"]),
    ]
    return _single(nodes, TensorProto.FLOAT, TensorProto.FLOAT, (1,), (1,), [size])


def eats_memory() -> bytes:
    """Fills 64 GiB from a few constants."""
    size = helper.make_tensor("size", TensorProto.INT64, [1], [2**34])
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["total"], keepdims=0),
        helper.make_node("Add", ["x", "total"], ["y"]),
    ]
    return _single(nodes, TensorProto.FLOAT, TensorProto.FLOAT, (1,), (1,), [size])


def with_external_weight(location: str = "weights.bin") -> tuple[bytes, bytes]:
    """y = x * weight, weight float32[4] outside the model. Returns (model, the external file)."""
    weight = np.array([1, 2, 3, 4], dtype=np.float32)
    tensor = onnx.TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(weight.nbytes))):
        tensor.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Mul", ["x", "weight"], ["y"])]
    model = _single(nodes, TensorProto.FLOAT, TensorProto.FLOAT, ("n", 4), ("n", 4), [tensor])
    return model, weight.tobytes()


def _single(
    nodes: list[onnx.NodeProto],
    type_in: int,
    type_out: int,
    shape_in: tuple[int | str, ...],
    shape_out: tuple[int | str, ...],
    tensors: list[onnx.TensorProto] | None = None,
) -> bytes:
    inputs = [helper.make_tensor_value_info("x", type_in, list(shape_in))]
    outputs = [helper.make_tensor_value_info("y", type_out, list(shape_out))]
    return model_bytes(helper.make_graph(nodes, "graph", inputs, outputs, tensors or []))


def _loop_bounds() -> list[onnx.TensorProto]:
    return [
        helper.make_tensor("trips", TensorProto.INT64, [], [2**62]),
        helper.make_tensor("go", TensorProto.BOOL, [], [True]),
    ]


def _endless_loop() -> onnx.NodeProto:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("Add", ["carried", "carried"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("still_going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    return helper.make_node("Loop", ["trips", "go", "x"], ["y"], body=body)
