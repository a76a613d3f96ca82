"""The larger nets of the serving benchmarks, of random weights from seeds: an encoder, ResNet-18, and almost nothing.

Weights are scaled as training would leave them (He et al. 2015), so that activations stay in range; batch norms are
folded, as exporters for inference leave them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from onnx import NodeProto, TensorProto, helper, numpy_helper

WIDTH, HEADS, TOKENS, LAYERS = 256, 4, 128, 4
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels and stride of ResNet-18 (He et al. 2016, table 1)
CLASSES = 1000


class Net:
    """A graph under construction."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[NodeProto] = []
        self._tensors: list[TensorProto] = []

    def op(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Append a node. Returns the name of its output."""
        to = to or f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [to], **attributes))
        return to

    def weight(self, *shape: int, fan_in: int) -> str:
        return self.constant(self._random.standard_normal(shape) * np.sqrt(2 / fan_in))

    def constant(self, values: ArrayLike, dtype: type = np.float32) -> str:
        name = f"c{len(self._tensors)}"
        self._tensors.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def build(self, x: tuple[int, ...], y: tuple[int, ...]) -> bytes:
        """The model; `x` and `y` are shapes of one row."""
        graph = helper.make_graph(
            self._nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *x])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *y])],
            self._tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(model.SerializeToString())


def encoder(seed: int) -> bytes:
    """float32[n, 128, 256] -> the same: 4 layers of Vaswani et al. 2017, norm first, 4 heads, 1024 in the middle."""
    net, last = Net(seed), "x"
    for layer in range(LAYERS):
        last = net.op("Add", last, _attention(net, _norm(net, last)))
        wide = net.op("MatMul", _norm(net, last), net.weight(WIDTH, 4 * WIDTH, fan_in=WIDTH))
        wide = net.op("Relu", net.op("Add", wide, net.constant(np.zeros(4 * WIDTH))))
        narrow = net.op("MatMul", wide, net.weight(4 * WIDTH, WIDTH, fan_in=4 * WIDTH))
        last = net.op("Add", last, narrow, to="y" if layer == LAYERS - 1 else "")
    return net.build((TOKENS, WIDTH), (TOKENS, WIDTH))


def _norm(net: Net, x: str) -> str:
    return net.op("LayerNormalization", x, net.constant(np.ones(WIDTH)), net.constant(np.zeros(WIDTH)))


def _attention(net: Net, x: str) -> str:
    split = net.constant([0, TOKENS, HEADS, WIDTH // HEADS], np.int64)

    def heads(perm: list[int]) -> str:
        projected = net.op("MatMul", x, net.weight(WIDTH, WIDTH, fan_in=2 * WIDTH))
        return net.op("Transpose", net.op("Reshape", projected, split), perm=perm)

    query, key, value = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    scores = net.op("Mul", net.op("MatMul", query, key), net.constant((WIDTH // HEADS) ** -0.5))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), value)
    joined = net.op("Transpose", mixed, perm=[0, 2, 1, 3])
    joined = net.op("Reshape", joined, net.constant([0, TOKENS, WIDTH], np.int64))
    return net.op("MatMul", joined, net.weight(WIDTH, WIDTH, fan_in=2 * WIDTH))


def resnet18(seed: int) -> bytes:
    """float32[n, 3, 224, 224] -> float32[n, 1000]: 11.7 million weights in 20 convolutions and a Gemm."""
    net = Net(seed)
    last = net.op("Relu", _convolution(net, "x", (3, 64), 7, 2))
    last = net.op("MaxPool", last, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    before = 64
    for channels, stride in STAGES:
        last = _block(net, last, (before, channels), stride)
        last = _block(net, last, (channels, channels), 1)
        before = channels
    flat = net.op("Flatten", net.op("GlobalAveragePool", last))
    net.op("Gemm", flat, net.weight(before, CLASSES, fan_in=before), net.constant(np.zeros(CLASSES)), to="y")
    return net.build((3, 224, 224), (CLASSES,))


def _block(net: Net, x: str, channels: tuple[int, int], stride: int) -> str:
    before, after = channels
    inner = net.op("Relu", _convolution(net, x, channels, 3, stride))
    inner = _convolution(net, inner, (after, after), 3, 1)
    beside = x if before == after else _convolution(net, x, channels, 1, stride)
    return net.op("Relu", net.op("Add", inner, beside))


def _convolution(net: Net, x: str, channels: tuple[int, int], size: int, stride: int) -> str:
    before, after = channels
    weight = net.weight(after, before, size, size, fan_in=2 * before * size * size)
    bias, pad = net.constant(np.zeros(after)), size // 2
    return net.op("Conv", x, weight, bias, kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4)


def reduce_max(shape: tuple[int, ...]) -> bytes:
    """float32[n, *shape] -> float32[n]: a large tensor and next to no work."""
    net = Net(0)
    net.op("ReduceMax", "x", axes=list(range(1, len(shape) + 1)), keepdims=0, to="y")
    return net.build(shape, ())
