"""Models for the serving benchmarks, built from seeds: no binary in git. Needs the `onnx` package."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TINY = (16, 32, 4)
MLP = (784, 512, 256, 10)


def perceptron(sizes: Sequence[int], seed: int) -> bytes:
    """float32[n, sizes[0]] `x` -> float32[n, sizes[-1]] `y`: Gemm and Relu in turns."""
    rng = np.random.default_rng(seed)
    nodes, tensors, last = [], [], "x"
    for index, (wide, narrow) in enumerate(pairwise(sizes)):
        weight = rng.standard_normal((wide, narrow)).astype(np.float32) / np.float32(np.sqrt(wide))
        tensors += [numpy_helper.from_array(weight, f"w{index}"), numpy_helper.from_array(weight[0], f"b{index}")]
        out = "y" if index == len(sizes) - 2 else f"g{index}"
        nodes.append(helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [out]))
        if out != "y":
            nodes.append(helper.make_node("Relu", [out], [f"r{index}"]))
            last = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", sizes[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", sizes[-1]])],
        tensors,
    )
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
