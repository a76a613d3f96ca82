"""Files as other exporters write them: scikit-learn's and Keras's, and the onnx package's light models; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tests.corpus.architecture import BATCH, CROSS_ENTROPY
from tests.fakes.light_models import LIGHT_MODELS, redrawn

node = helper.make_node
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Written:
    """A file that is made, not exported. `large`: too many numbers for a check in float64; differences in float32."""

    name: str
    source: str
    make: Callable[[], bytes]
    loss: str = CROSS_ENTROPY
    large: bool = False


def drawn(*shape: int, around: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng([*shape, 11])
    return (around + rng.standard_normal(shape) / np.sqrt(max(shape[0], 1))).astype(np.float32)


def model(
    nodes: list[NodeProto], weights: Mapping[str, np.ndarray], row: tuple[int, ...], outputs: Mapping[str, int]
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "written",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", *row))],
        [helper.make_tensor_value_info(name, kind, _open(kind)) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString()


def _open(kind: int) -> list[None]:
    """The shape of an output: a table of floats or a list of labels, sizes unsaid."""
    return [None] * (2 if kind == TensorProto.FLOAT else 1)


def scikit_pipeline() -> bytes:
    """StandardScaler and MLPClassifier: label and probabilities."""
    nodes = [
        *(node("Sub", ["x", "mean"], ["centred"]), node("Div", ["centred", "scale"], ["scaled"])),
        *(node("MatMul", ["scaled", "w0"], ["a"]), node("Add", ["a", "b0"], ["b"]), node("Relu", ["b"], ["c"])),
        *(node("MatMul", ["c", "w1"], ["d"]), node("Add", ["d", "b1"], ["e"]), node("Softmax", ["e"], ["p"], axis=1)),
        *(node("ArgMax", ["p"], ["best"], axis=1, keepdims=0), node("Gather", ["names", "best"], ["label"])),
    ]
    weights: Arrays = {
        **{"mean": drawn(6), "scale": drawn(6, around=3.0), "w0": drawn(6, 8), "b0": drawn(8)},
        **{"w1": drawn(8, 3), "b1": drawn(3), "names": np.array([10, 20, 30])},
    }
    return model(nodes, weights, (6,), {"label": TensorProto.INT64, "p": TensorProto.FLOAT})


def keras_convolutional() -> bytes:
    """Channels last, as tf2onnx writes it: transposes around convolutions, statistics as scale and shift."""
    nodes = [
        node("Transpose", ["x"], ["image"], perm=[0, 3, 1, 2]),
        *(
            node("Conv", ["image", "k0", "c0"], ["a"], auto_pad="SAME_UPPER", strides=[2, 2]),
            node("Relu", ["a"], ["b"]),
        ),
        *(node("Mul", ["b", "gamma"], ["c"]), node("Add", ["c", "beta"], ["d"])),
        node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
        *(node("Transpose", ["e"], ["f"], perm=[0, 2, 3, 1]), node("Reshape", ["f", "flat"], ["g"])),
        *(node("MatMul", ["g", "w"], ["h"]), node("Add", ["h", "bias"], ["i"]), node("Softmax", ["i"], ["p"], axis=-1)),
    ]
    weights: Arrays = {
        **{"k0": drawn(4, 3, 3, 3), "c0": drawn(4), "gamma": drawn(1, 4, 1, 1, around=1.0), "beta": drawn(1, 4, 1, 1)},
        **{"flat": np.array([-1, 64]), "w": drawn(64, 5), "bias": drawn(5)},
    }
    return model(nodes, weights, (16, 16, 3), {"p": TensorProto.FLOAT})


def keras_recurrent() -> bytes:
    """Bidirectional LSTM as tf2onnx writes it: time first, directions joined by a transpose and a reshape."""
    nodes = [
        node("Transpose", ["x"], ["time_first"], perm=[1, 0, 2]),
        node("LSTM", ["time_first", "w", "r", "b"], ["all", "last"], hidden_size=6, direction="bidirectional"),
        *(node("Transpose", ["last"], ["a"], perm=[1, 0, 2]), node("Reshape", ["a", "flat"], ["c"])),
        *(node("MatMul", ["c", "d"], ["e"]), node("Add", ["e", "bias"], ["f"]), node("Sigmoid", ["f"], ["p"])),
    ]
    weights: Arrays = {
        **{"w": drawn(2, 24, 4), "r": drawn(2, 24, 6), "b": drawn(2, 48), "flat": np.array([-1, 12])},
        **{"d": drawn(12, 2), "bias": drawn(2)},
    }
    return model(nodes, weights, (7, 4), {"p": TensorProto.FLOAT})


def feeds_of(proto: onnx.ModelProto) -> Arrays:
    """Standard normal samples for the one input of a file."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    (data,) = (value for value in proto.graph.input if value.name not in stored)
    shape = [dim.dim_value or BATCH for dim in data.type.tensor_type.shape.dim]
    return {data.name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}


def light(name: str) -> Written:
    short = name.removeprefix("light_").removeprefix("bvlc_").replace("_", " ")
    return Written(f"light {short}", "onnx", lambda: redrawn(name), large=True)


WRITTEN = (
    Written("Scaler and perceptron", "as scikit-learn's", scikit_pipeline),
    Written("Convolutional net", "as Keras's", keras_convolutional),
    Written("Bidirectional LSTM", "as Keras's", keras_recurrent, loss="binary_cross_entropy"),
    *(light(name) for name in LIGHT_MODELS),
)
