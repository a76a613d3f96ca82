"""The nets that training is measured with, as ONNX; `training_torch.py` has the same ones as PyTorch modules.

Parameters are called as PyTorch calls them, so that both start from the same weights. Matrices that an exporter
transposes (MatMul takes [inputs, outputs]) are transposed back by name, see `TRANSPOSED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from benchmarks.training_sizes import (
    BLOCKS,
    CLASSES,
    HEADS,
    LAST,
    LAYERS,
    MLP_SIZES,
    STEM,
    STEPS,
    TRANSPOSED,
    WIDE,
    WIDTH,
    WORDS,
)
from onnx import NodeProto, TensorProto, helper
from tests.fakes.models import classifier


@dataclass(frozen=True, slots=True)
class Net:
    """`shape`: of one sample. `steps`: per block of a measurement at batch 10, so that a block takes about 0.4 s."""

    name: str
    shape: tuple[int, ...]
    steps: int
    onnx: Callable[[], bytes]
    batches: tuple[int, ...] = (10, 32)
    words: int = 0  # where samples are ids: how many there are
    batch_norm: str = "frozen"
    trainable: str = "all"


class _Writer:
    """Collects nodes and seeded weights; every method returns the name of a value."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def node(self, operator: str, *inputs: str, **attributes: object) -> str:
        made = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [made], **attributes))
        return made

    def drawn(self, name: str, *shape: int, scale: float) -> str:
        self.weights[name] = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        return name

    def filled(self, name: str, size: int, value: float) -> str:
        self.weights[name] = np.full(size, value, np.float32)
        return name

    def fixed(self, name: str, values: object) -> str:
        array = np.asarray(values)
        self.weights[name] = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        return name

    def dense(self, name: str, value: str, inputs: int, outputs: int) -> str:
        weight = self.drawn(f"{name}.weight", outputs, inputs, scale=(2 / inputs) ** 0.5)
        return self.node("Gemm", value, weight, self.filled(f"{name}.bias", outputs, 0.0), transB=1)

    def linear(self, name: str, value: str, inputs: int, outputs: int) -> str:
        """What exporters make of a linear layer over sequences."""
        weight = self.drawn(f"{name}.weight{TRANSPOSED}", inputs, outputs, scale=inputs**-0.5)
        return self.node("Add", self.node("MatMul", value, weight), self.filled(f"{name}.bias", outputs, 0.0))

    def layer_norm(self, name: str, value: str, width: int) -> str:
        scale, bias = self.filled(f"{name}.weight", width, 1.0), self.filled(f"{name}.bias", width, 0.0)
        return self.node("LayerNormalization", value, scale, bias, epsilon=1e-5)

    def unit(
        self, name: str, value: str, sizes: tuple[int, int, int], *, stride: int = 1, group: int = 1, bounded: bool
    ) -> str:
        """Convolution, batch normalisation and, if bounded, Relu6. `sizes`: inputs, outputs, kernel."""
        inputs, outputs, kernel = sizes
        fan = inputs // group * kernel * kernel
        weight = self.drawn(f"{name}.0.weight", outputs, inputs // group, kernel, kernel, scale=(2 / fan) ** 0.5)
        pads = [kernel // 2] * 4
        value = self.node("Conv", value, weight, pads=pads, strides=[stride, stride], group=group)
        starts = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        parts = [self.filled(f"{name}.1.{part}", outputs, start) for part, start in starts.items()]
        value = self.node("BatchNormalization", value, *parts, momentum=0.9, epsilon=1e-5)
        return self.node("Clip", value, self.fixed("low", 0.0), self.fixed("high", 6.0)) if bounded else value

    def model(self, logits: str, net_input: tuple[int | str, ...], element_type: int = TensorProto.FLOAT) -> bytes:
        return classifier(
            self.nodes, self.weights, inputs={"input": net_input}, outputs=[logits], element_type=element_type
        )


def _mlp() -> bytes:
    out, value = _Writer(), "input"
    for index, (inputs, outputs) in enumerate(pairwise(MLP_SIZES)):
        value = out.dense(str(2 * index), out.node("Relu", value) if index else value, inputs, outputs)
    return out.model(value, ("batch", MLP_SIZES[0]))


def _cnn() -> bytes:
    """The CNN of McMahan et al. 2017, section 3: two 5x5 convolutions of 32 and 64, pooling, 512 units; 1,663,370."""
    out, value = _Writer(), "input"
    for name, inputs, outputs in (("0", 1, 32), ("3", 32, 64)):
        weight = out.drawn(f"{name}.weight", outputs, inputs, 5, 5, scale=(2 / (inputs * 25)) ** 0.5)
        value = out.node("Conv", value, weight, out.filled(f"{name}.bias", outputs, 0.0), pads=[2, 2, 2, 2])
        value = out.node("MaxPool", out.node("Relu", value), kernel_shape=[2, 2], strides=[2, 2])
    value = out.node("Relu", out.dense("7", out.node("Flatten", value), 3136, 512))
    return out.model(out.dense("9", value, 512, CLASSES), ("batch", 1, 28, 28))


def _transformer() -> bytes:
    """Vaswani et al. 2017's encoder over 32 word ids: width 128, 2 layers, 4 heads; the mean is classified; 529,930."""
    out = _Writer()
    value = out.node("Gather", out.drawn("words.weight", WORDS, WIDTH, scale=0.5), "input")
    value = out.node("Add", value, out.drawn("places", STEPS, WIDTH, scale=0.3))
    for layer in range(LAYERS):
        name = f"encoder.layers.{layer}"
        mixed = _attention(out, f"{name}.self_attn", value)
        value = out.layer_norm(f"{name}.norm1", out.node("Add", value, mixed), WIDTH)
        inner = out.node("Gelu", out.linear(f"{name}.linear1", value, WIDTH, WIDE))
        inner = out.linear(f"{name}.linear2", inner, WIDE, WIDTH)
        value = out.layer_norm(f"{name}.norm2", out.node("Add", value, inner), WIDTH)
    mean = out.node("ReduceMean", value, out.fixed("over", [1]), keepdims=0)
    return out.model(out.dense("head", mean, WIDTH, CLASSES), ("batch", STEPS), TensorProto.INT64)


def _attention(out: _Writer, name: str, value: str) -> str:
    joined = out.linear(f"{name}.in_proj", value, WIDTH, 3 * WIDTH)
    parts = [f"{name}.part{index}" for index in range(3)]
    out.nodes.append(helper.make_node("Split", [joined], parts, axis=-1, num_outputs=3))
    heads = out.fixed("heads", [0, STEPS, HEADS, WIDTH // HEADS])
    orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    q, k, v = (
        out.node("Transpose", out.node("Reshape", part, heads), perm=order)
        for part, order in zip(parts, orders, strict=True)
    )
    scaled = out.node("Mul", out.node("MatMul", q, k), out.fixed("scale", (WIDTH / HEADS) ** -0.5))
    mixed = out.node("Transpose", out.node("MatMul", out.node("Softmax", scaled, axis=-1), v), perm=[0, 2, 1, 3])
    merged = out.node("Reshape", mixed, out.fixed("merged", [0, STEPS, WIDTH]))
    return out.linear(f"{name}.out_proj", merged, WIDTH, WIDTH)


def _mobile_net() -> bytes:
    """Inverted residuals (Sandler et al. 2018) over 96x96 colour images, 95,322 parameters without statistics."""
    out = _Writer()
    value = out.unit("stem", "input", (3, STEM, 3), stride=2, bounded=True)
    inputs = STEM
    for index, (outputs, stride) in enumerate(BLOCKS):
        name, middle = f"blocks.{index}", 4 * inputs
        wide = out.unit(f"{name}.wide", value, (inputs, middle, 1), bounded=True)
        deep = out.unit(f"{name}.deep", wide, (middle, middle, 3), stride=stride, group=middle, bounded=True)
        narrow = out.unit(f"{name}.narrow", deep, (middle, outputs, 1), bounded=False)
        value = out.node("Add", value, narrow) if stride == 1 and inputs == outputs else narrow
        inputs = outputs
    value = out.node("GlobalAveragePool", out.unit("last", value, (inputs, LAST, 1), bounded=True))
    return out.model(out.dense("head", out.node("Flatten", value), LAST, CLASSES), ("batch", 3, 96, 96))


NETS = (
    Net("mlp", (MLP_SIZES[0],), 800, _mlp),
    Net("cnn", (1, 28, 28), 25, _cnn),
    Net("transformer", (STEPS,), 30, _transformer, words=WORDS),
    Net("mobile_net", (3, 96, 96), 5, _mobile_net, batch_norm="local"),
    Net("mobile_net_head", (3, 96, 96), 25, _mobile_net, trainable="head.*"),
)
