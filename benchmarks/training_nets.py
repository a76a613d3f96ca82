"""The nets that training is measured with, as ONNX; `training_torch.py` has the same ones as PyTorch modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from benchmarks.training_steps import CLASSES, MLP_SIZES
from onnx import helper
from tests.fakes.models import classifier, he_mlp


@dataclass(frozen=True, slots=True)
class Net:
    """`shape`: of one sample. `steps`: per block of a measurement, so that a block takes about half a second."""

    name: str
    shape: tuple[int, ...]
    steps: int
    onnx: Callable[[], bytes]


def _cnn_onnx() -> bytes:
    """The CNN of McMahan et al. 2017, section 3: two 5x5 convolutions of 32 and 64, pooling, 512 units; 1,663,370."""
    rng = np.random.default_rng(0)
    shapes = {"c1": (32, 1, 5, 5), "c2": (64, 32, 5, 5), "f1": (512, 3136), "f2": (CLASSES, 512)}
    weights = {
        f"{name}.weight": (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }
    weights |= {f"{name}.bias": np.zeros(shape[0], np.float32) for name, shape in shapes.items()}
    nodes, value = [], "input"
    for name in ("c1", "c2"):
        nodes += [
            helper.make_node("Conv", [value, f"{name}.weight", f"{name}.bias"], [f"{name}.y"], pads=[2, 2, 2, 2]),
            helper.make_node("Relu", [f"{name}.y"], [f"{name}.r"]),
            helper.make_node("MaxPool", [f"{name}.r"], [f"{name}.p"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        value = f"{name}.p"
    nodes += [
        helper.make_node("Flatten", [value], ["flat"]),
        helper.make_node("Gemm", ["flat", "f1.weight", "f1.bias"], ["f1.y"], transB=1),
        helper.make_node("Relu", ["f1.y"], ["f1.r"]),
        helper.make_node("Gemm", ["f1.r", "f2.weight", "f2.bias"], ["logits"], transB=1),
    ]
    return classifier(nodes, weights, inputs={"input": ("batch", 1, 28, 28)})


NETS = (
    Net("mlp", (784,), 1_000, lambda: he_mlp(list(MLP_SIZES))),
    Net("cnn", (1, 28, 28), 30, _cnn_onnx),
)
