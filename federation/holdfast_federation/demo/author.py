"""The author's desk of the demonstration: a small network, trained on 100 digits that no device has."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from holdfast.author.fit import FitSettings, fit
from holdfast_federation.demo.data import LABELS, Share

WIDTHS = (64, 64, 64, len(LABELS))  # pixels, two hidden layers, digits: 8,970 parameters
AUTHOR_EPOCHS = 5  # as many as a device does in a round; on 100 samples it leaves much to learn
INPUT, OUTPUT = "image", "logits"


def make_network(seed: int) -> bytes:
    """An untrained perceptron 64-64-64-10 with ReLU as ONNX; He initialisation (He et al. 2015, arXiv 1502.01852)."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    nodes, initializers, value = [], [], INPUT
    for layer, (fan_in, fan_out) in enumerate(pairwise(WIDTHS), start=1):
        weight = rng.normal(0.0, np.sqrt(2.0 / fan_in), (fan_in, fan_out)).astype(np.float32)
        initializers.append(numpy_helper.from_array(weight, f"layer{layer}.weight"))
        initializers.append(
            numpy_helper.from_array(rng.normal(0.0, 1e-3, fan_out).astype(np.float32), f"layer{layer}.bias")
        )
        last = layer == len(WIDTHS) - 1
        sum_name = OUTPUT if last else f"layer{layer}.sum"
        nodes.append(helper.make_node("Gemm", [value, f"layer{layer}.weight", f"layer{layer}.bias"], [sum_name]))
        if not last:
            value = f"layer{layer}.out"
            nodes.append(helper.make_node("Relu", [sum_name], [value]))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", WIDTHS[0]])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", WIDTHS[-1]])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString(deterministic=True))


def train_first_version(share: Share, *, batch: int, learning_rate: float, seed: int) -> tuple[bytes, float]:
    """The trained ONNX model and its accuracy on the author's own samples."""
    settings = FitSettings(AUTHOR_EPOCHS, batch, learning_rate, seed)
    return fit(make_network(seed), share.images, share.labels, settings)
