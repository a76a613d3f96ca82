"""Models for the serving benchmarks, built from seeds: no binary in git. Needs the `onnx` package.

Every one takes float32[n, ...] `x` and gives float32[n, ...] `y`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from benchmarks.serving_nets import encoder, reduce_max, resnet18
from onnx import TensorProto, helper, numpy_helper

TINY = (16, 32, 4)
MLP = (784, 512, 256, 10)
IMAGE = (3, 224, 224)  # 602 kB of float32


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


MODELS: dict[str, Callable[[], bytes]] = {
    "tiny0": partial(perceptron, TINY, 0),
    "tiny1": partial(perceptron, TINY, 1),
    "tiny2": partial(perceptron, TINY, 2),
    "mlp": partial(perceptron, MLP, 3),
    "encoder": partial(encoder, 4),
    "resnet18": partial(resnet18, 5),
    "largest": partial(reduce_max, IMAGE),
}
SHAPES = {"mlp": MLP[:1], "encoder": (128, 256), "resnet18": IMAGE, "largest": IMAGE}


def input_shape(name: str) -> tuple[int, ...]:
    """Of one row."""
    return SHAPES.get(name, TINY[:1])


@contextmanager
def repository(names: Sequence[str]) -> Iterator[Path]:
    """A folder of models as `holdfast serve` takes it, removed afterwards."""
    with TemporaryDirectory() as folder:
        for name in names:
            put_model(Path(folder), name, MODELS[name]())
        yield Path(folder)


def put_model(folder: Path, name: str, model: bytes, version: int = 1) -> None:
    """Write a model where a repository has it."""
    place = folder / name / str(version)
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(model)
