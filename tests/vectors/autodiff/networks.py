"""Whole small networks by hand: the kinds of model that devices learn, each with a batch of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper
from tests.fakes.models import classifier

CLASSES = 5


@dataclass(frozen=True)
class Network:
    """`labels` end in padding, which must change nothing. `batch_norm` is the mode of its training step."""

    name: str
    model: bytes
    x: np.ndarray
    labels: np.ndarray
    batch_norm: str = "frozen"


class _Net:
    """Collects nodes and seeded weights; every method returns the name of a value."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def weight(self, *shape: int, scale: float | None = None, around: float = 0.0) -> str:
        name = f"w{len(self.weights)}"
        spread = scale if scale is not None else float(np.sqrt(2 / max(np.prod(shape[1:]), 1)))
        self.weights[name] = (self.rng.standard_normal(shape) * spread + around).astype(np.float32)
        return name

    def fixed(self, values: object) -> str:
        array = np.asarray(values)
        name = f"c{len(self.weights)}"
        self.weights[name] = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        return name

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        made = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), made, **attributes))
        return made[0]

    def dense(self, value: str, inputs: int, outputs: int) -> str:
        return self.node("Gemm", value, self.weight(outputs, inputs), self.weight(outputs, scale=0.1), transB=1)

    def linear(self, value: str, inputs: int, outputs: int) -> str:
        product = self.node("MatMul", value, self.weight(inputs, outputs, scale=inputs**-0.5))
        return self.node("Add", product, self.weight(outputs, scale=0.1))

    def conv(self, value: str, inputs: int, outputs: int, kernel: int, **attributes: object) -> str:
        pad = kernel // 2
        weight = self.weight(outputs, inputs, kernel, kernel)
        return self.node("Conv", value, weight, pads=[pad] * 4, **attributes)

    def batch_norm(self, value: str, channels: int) -> str:
        scale, bias = self.weight(channels, scale=0.1, around=1.0), self.weight(channels, scale=0.1)
        mean, variance = self.weight(channels, scale=0.3), self.weight(channels, scale=0.1, around=1.0)
        return self.node("BatchNormalization", value, scale, bias, mean, variance, momentum=0.9)

    def layer_norm(self, value: str, width: int) -> str:
        scale = self.weight(width, scale=0.1, around=1.0)
        return self.node("LayerNormalization", value, scale, self.weight(width, scale=0.1))

    def attention(self, value: str, steps: int, width: int, heads: int) -> str:
        """Scaled dot-product attention with one product for queries, keys and values."""
        joined = self.linear(value, width, 3 * width)
        split = self.node("Split", joined, outputs=3, axis=-1, num_outputs=3).removesuffix("_0")
        shape = self.fixed([0, steps, heads, width // heads])
        parts = []
        for index, order in enumerate(([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])):
            parts.append(self.node("Transpose", self.node("Reshape", f"{split}_{index}", shape), perm=order))
        scores = self.node("MatMul", parts[0], parts[1])
        scaled = self.node("Mul", scores, self.fixed(float((width // heads) ** -0.5)))
        mixed = self.node("MatMul", self.node("Softmax", scaled, axis=-1), parts[2])
        merged = self.node("Reshape", self.node("Transpose", mixed, perm=[0, 2, 1, 3]), self.fixed([0, steps, width]))
        return self.linear(merged, width, width)

    def block(self, value: str, steps: int, width: int, heads: int) -> str:
        """A transformer block that normalises first."""
        value = self.node("Add", value, self.attention(self.layer_norm(value, width), steps, width, heads))
        inner = self.node("Gelu", self.linear(self.layer_norm(value, width), width, 2 * width))
        return self.node("Add", value, self.linear(inner, 2 * width, width))

    def finish(self, name: str, logits: str, x: np.ndarray, *, batch_norm: str = "frozen") -> Network:
        self.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
        kind = TensorProto.FLOAT if x.dtype == np.float32 else TensorProto.INT64
        model = classifier(self.nodes, self.weights, inputs={"x": ("batch", *x.shape[1:])}, element_type=kind)
        labels = np.arange(len(x)) % CLASSES
        labels[-1] = -1
        return Network(name, model, x, labels, batch_norm)

    def images(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)


def cnn() -> Network:
    net = _Net(1)
    value = "x"
    for inputs, outputs in ((1, 4), (4, 6)):
        value = net.node("Relu", net.conv(value, inputs, outputs, 5))
        value = net.node("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
    value = net.node("Relu", net.dense(net.node("Flatten", value), 54, 16))
    return net.finish("cnn", net.dense(value, 16, CLASSES), net.images(8, 1, 12, 12))


def transformer() -> Network:
    """Token ids in; the mean over the steps is classified."""
    net = _Net(2)
    steps, width = 6, 12
    value = net.node("Gather", net.weight(20, width, scale=0.5), "x")
    value = net.node("Add", value, net.weight(steps, width, scale=0.3))
    for _ in range(2):
        value = net.block(value, steps, width, 3)
    mean = net.node("ReduceMean", net.layer_norm(value, width), net.fixed([1]), keepdims=0)
    tokens = net.rng.integers(0, 20, (8, steps))
    return net.finish("transformer", net.dense(mean, width, CLASSES), tokens)


def mobile_net(batch_norm: str) -> Network:
    """Stem, an inverted residual with a skip connection, one with stride 2, and a head."""
    net = _Net(3)
    low, high = net.fixed(0.0), net.fixed(6.0)

    def unit(value: str, inputs: int, outputs: int, kernel: int, *, bounded: bool = True, **attributes: object) -> str:
        value = net.batch_norm(net.conv(value, inputs, outputs, kernel, **attributes), outputs)
        return net.node("Clip", value, low, high) if bounded else value

    value = unit("x", 3, 6, 3, strides=[2, 2])
    for stride in (1, 2):
        wide = unit(value, 6, 12, 1)
        deep = unit(wide, 1, 12, 3, group=12, strides=[stride, stride])
        narrow = unit(deep, 12, 6, 1, bounded=False)
        value = net.node("Add", value, narrow) if stride == 1 else narrow
    value = net.node("Flatten", net.node("GlobalAveragePool", unit(value, 6, 16, 1)))
    return net.finish(
        f"mobile_net_{batch_norm}", net.dense(value, 16, CLASSES), net.images(8, 3, 12, 12), batch_norm=batch_norm
    )


def lstm() -> Network:
    """A stack of a bidirectional LSTM and a GRU; the last state is classified."""
    net = _Net(4)
    hidden = 6
    value = net.node("Transpose", "x", perm=[1, 0, 2])
    weights = (net.weight(2, 4 * hidden, 5, scale=0.4), net.weight(2, 4 * hidden, hidden, scale=0.4))
    value = net.node(
        "LSTM", value, *weights, net.weight(2, 8 * hidden, scale=0.2), hidden_size=hidden, direction="bidirectional"
    )
    value = net.node("Transpose", value, perm=[0, 2, 1, 3])
    value = net.node("Reshape", value, net.fixed([0, 0, 2 * hidden]))
    weights = (net.weight(1, 3 * hidden, 2 * hidden, scale=0.4), net.weight(1, 3 * hidden, hidden, scale=0.4))
    bias = net.weight(1, 6 * hidden, scale=0.2)
    made = net.node("GRU", value, *weights, bias, hidden_size=hidden, linear_before_reset=1, outputs=2)
    last = net.node("Squeeze", made.removesuffix("_0") + "_1", net.fixed([0]))
    return net.finish("lstm", net.dense(last, hidden, CLASSES), net.images(8, 7, 5))


def vision_transformer() -> Network:
    """Patches by a strided convolution, a class token, one block, the class token classified."""
    net = _Net(5)
    width, patches = 12, 9
    value = net.node("Conv", "x", net.weight(width, 3, 4, 4), net.weight(width, scale=0.1), strides=[4, 4])
    value = net.node("Reshape", value, net.fixed([0, width, patches]))
    value = net.node("Transpose", value, perm=[0, 2, 1])
    head = net.node("Shape", "x", start=0, end=1)
    token = net.node(
        "Expand", net.weight(1, 1, width, scale=0.5), net.node("Concat", head, net.fixed([1, width]), axis=0)
    )
    value = net.node("Concat", token, value, axis=1)
    value = net.node("Add", value, net.weight(1, patches + 1, width, scale=0.3))
    value = net.layer_norm(net.block(value, patches + 1, width, 2), width)
    chosen = net.node("Gather", value, net.fixed(0), axis=1)
    return net.finish("vision_transformer", net.dense(chosen, width, CLASSES), net.images(8, 3, 12, 12))


NETWORKS = {
    net.name: net
    for net in (cnn(), transformer(), mobile_net("frozen"), mobile_net("averaged"), lstm(), vision_transformer())
}
