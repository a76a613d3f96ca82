"""Random graphs composed from the rules: their gradients are the finite differences of their own loss, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper
from tests.fakes.models import classifier

from holdfast.autodiff.build import StepOptions, build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.autodiff.selfcheck import TOLERANCE, check_gradients

Shape = tuple[int, ...]
BATCH = 3


class Growing:
    """A graph that grows by one layer at a time; `value` and `shape` (without the batch) are its present end."""

    def __init__(self, draw: st.DrawFn, shape: Shape) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**31)))
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.value, self.shape = "x", shape
        self.earlier: list[tuple[str, Shape]] = []

    def weight(self, *shape: int, around: float = 0.0) -> str:
        name = f"w{len(self.weights)}"
        spread = 0.7 / np.sqrt(max(np.prod(shape[1:]), 1))
        self.weights[name] = (self.rng.standard_normal(shape) * spread + around).astype(np.float32)
        return name

    def fixed(self, values: object) -> str:
        name = f"c{len(self.weights)}"
        array = np.asarray(values)
        self.weights[name] = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        return name

    def emit(self, operator: str, *inputs: str, shape: Shape | None = None, **attributes: object) -> None:
        self.earlier.append((self.value, self.shape))
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs or (self.value,)), [name], **attributes))
        self.value, self.shape = name, shape or self.shape

    def finish(self) -> bytes:
        self.emit("Flatten", self.value, axis=1)
        width = int(np.prod(self.shape))
        self.nodes.append(helper.make_node("Gemm", [self.value, self.weight(width, 3), self.weight(3)], ["logits"]))
        return classifier(self.nodes, self.weights, inputs={"x": ("batch", *self.first)})

    @property
    def first(self) -> Shape:
        return self.earlier[0][1] if self.earlier else self.shape


def activation(g: Growing) -> None:
    names = ["Tanh", "Sigmoid", "Gelu", "Elu", "Softplus", "Relu", "Mish", "Sin", "HardSwish", "Softsign"]
    g.emit(g.draw(st.sampled_from(names)), g.value)


def scale(g: Growing) -> None:
    shape = [size if g.draw(st.booleans()) else 1 for size in g.shape]
    g.emit(g.draw(st.sampled_from(["Add", "Sub", "Mul", "Min", "Max"])), g.value, g.weight(*shape, around=1.0))


def skip(g: Growing) -> None:
    same = [value for value, shape in g.earlier if shape == g.shape]
    if same:
        g.emit(g.draw(st.sampled_from(["Add", "Sub", "Mul", "Max"])), g.value, g.draw(st.sampled_from(same)))


def convolution(g: Growing) -> None:
    channels, *size = g.shape
    group = g.draw(st.sampled_from([1, channels]))
    made = group * g.draw(st.integers(1, 2))
    kernel = [g.draw(st.integers(1, min(3, each))) for each in size]
    strides = [g.draw(st.integers(1, 3)) for _ in size]
    pads = [g.draw(st.integers(0, 1)) for _ in range(4)]
    out = [(n + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1 for i, n in enumerate(size)]
    weight = g.weight(made, channels // group, *kernel)
    g.emit("Conv", g.value, weight, g.weight(made), shape=(made, *out), group=group, strides=strides, pads=pads)


def transposed_convolution(g: Growing) -> None:
    channels, *size = g.shape
    strides = [g.draw(st.integers(1, 2)) for _ in size]
    out = [(n - 1) * s + 2 for n, s in zip(size, strides, strict=True)]
    if max(out) <= 8:
        g.emit("ConvTranspose", g.value, g.weight(channels, 2, 2, 2), shape=(2, *out), strides=strides)


def pooling(g: Growing) -> None:
    channels, *size = g.shape
    kernel = [g.draw(st.integers(1, min(3, each))) for each in size]
    strides = [g.draw(st.integers(1, 3)) for _ in size]
    out = [(n - k) // s + 1 for n, k, s in zip(size, kernel, strides, strict=True)]
    operator = g.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    g.emit(operator, g.value, shape=(channels, *out), kernel_shape=kernel, strides=strides)


def image_normalisation(g: Growing) -> None:
    channels = g.shape[0]
    scale_, bias = g.weight(channels, around=1.0), g.weight(channels)
    if g.draw(st.booleans()):
        variance = g.weight(channels)
        g.weights[variance] = np.abs(g.weights[variance]) + np.float32(0.5)
        g.emit("BatchNormalization", g.value, scale_, bias, g.weight(channels), variance)
    elif np.prod(g.shape[1:]) > 2:
        g.emit("InstanceNormalization", g.value, scale_, bias, epsilon=0.1)


def layer_normalisation(g: Growing) -> None:
    width = g.shape[-1]
    if width > 1:
        g.emit("LayerNormalization", g.value, g.weight(width, around=1.0), g.weight(width), epsilon=0.1)


def softmax(g: Growing) -> None:
    g.emit(g.draw(st.sampled_from(["Softmax", "LogSoftmax"])), g.value, axis=g.draw(st.integers(1, len(g.shape))))


def linear(g: Growing) -> None:
    made = g.draw(st.integers(1, 4))
    g.emit("MatMul", g.value, g.weight(g.shape[-1], made), shape=(*g.shape[:-1], made))


def transpose(g: Growing) -> None:
    order = g.draw(st.permutations(range(len(g.shape))))
    shape = tuple(g.shape[axis] for axis in order)
    g.emit("Transpose", g.value, shape=shape, perm=[0, *(axis + 1 for axis in order)])


def cut(g: Growing) -> None:
    axis = g.draw(st.integers(0, len(g.shape) - 1))
    step = g.draw(st.sampled_from([1, 2, -1]))
    start, stop = (0, g.shape[axis]) if step > 0 else (-1, -(2**31))
    count = -(-g.shape[axis] // abs(step))
    shape = (*g.shape[:axis], count, *g.shape[axis + 1 :])
    g.emit("Slice", g.value, *(g.fixed([each]) for each in (start, stop, axis + 1, step)), shape=shape)


def join(g: Growing) -> None:
    if max(g.shape) <= 4:
        axis = g.draw(st.integers(0, len(g.shape) - 1))
        shape = (*g.shape[:axis], 2 * g.shape[axis], *g.shape[axis + 1 :])
        g.emit("Concat", g.value, g.value, shape=shape, axis=axis + 1)


def reduce(g: Growing) -> None:
    axis = g.draw(st.integers(0, len(g.shape) - 1))
    shape = (*g.shape[:axis], 1, *g.shape[axis + 1 :])
    operator = g.draw(st.sampled_from(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceLogSumExp"]))
    g.emit(operator, g.value, g.fixed([axis + 1]), shape=shape, keepdims=1)


def recurrent(g: Growing) -> None:
    steps, inputs = g.shape
    operator, gates = g.draw(st.sampled_from([("LSTM", 4), ("GRU", 3), ("RNN", 1)]))
    hidden = g.draw(st.integers(1, 3))
    known = len(g.earlier) + 1  # what comes between has the steps first, so that nothing may skip to it
    g.emit("Transpose", g.value, perm=[1, 0, 2])
    weights = (g.weight(1, gates * hidden, inputs), g.weight(1, gates * hidden, hidden))
    g.emit(operator, g.value, *weights, g.weight(1, 2 * gates * hidden), hidden_size=hidden)
    g.emit("Transpose", g.value, shape=(steps, hidden, 1), perm=[2, 0, 3, 1])
    g.emit("Squeeze", g.value, g.fixed([-1]), shape=(steps, hidden))
    del g.earlier[known:]


Layer = Callable[[Growing], None]
ANY: tuple[Layer, ...] = (activation, scale, skip, softmax, linear, transpose, cut, join, reduce, layer_normalisation)
IMAGE: tuple[Layer, ...] = (*ANY, convolution, convolution, transposed_convolution, pooling, image_normalisation)


@st.composite
def image_graphs(draw: st.DrawFn) -> bytes:
    growing = Growing(draw, (2, 5, 4))
    for layer in draw(st.lists(st.sampled_from(IMAGE), min_size=1, max_size=6)):
        layer(growing)
    return growing.finish()


@st.composite
def sequence_graphs(draw: st.DrawFn) -> bytes:
    growing = Growing(draw, (4, 3))
    for layer in draw(st.lists(st.sampled_from((*ANY, recurrent)), min_size=1, max_size=6)):
        layer(growing)
    return growing.finish()


def assert_gradients_are_differences(model: bytes, options: StepOptions | None = None) -> None:
    graphs = build_graphs(model, batch=BATCH, options=options)
    check = check_gradients(graphs, split_weights(model).weights)
    assert max(check.directional_error, check.reference_error) <= TOLERANCE


RANDOM = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@RANDOM
@given(image_graphs())
def test_gradients_of_random_image_graphs_are_differences(model: bytes) -> None:
    assert_gradients_are_differences(model)


@RANDOM
@given(sequence_graphs())
def test_gradients_of_random_sequence_graphs_are_differences(model: bytes) -> None:
    assert_gradients_are_differences(model)


@settings(RANDOM, max_examples=10)
@given(image_graphs())
def test_gradients_of_random_graphs_with_statistics_of_the_batch_are_differences(model: bytes) -> None:
    assert_gradients_are_differences(model, StepOptions(batch_norm="averaged"))
