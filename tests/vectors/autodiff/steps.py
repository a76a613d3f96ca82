"""What training steps are held to: losses, optimizers, the proximal term, clipping and Dropout, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper
from tests.fakes.models import classifier

BATCH, INPUTS, CLASSES = 6, 5, 4
STEPS = 4
LEARNING_RATE = 0.05
PROXIMAL_MU, CLIP_NORM = 0.7, 0.2
RATIO = 0.3


@dataclass(frozen=True)
class LossCase:
    """`spec` is what the product is asked for; `torch` the function of torch.nn.functional and its settings."""

    name: str
    spec: str
    torch: str
    settings: dict[str, Any]
    of_classes: bool


@dataclass(frozen=True)
class OptimizerCase:
    """`torch` is the class in torch.optim and its settings."""

    name: str
    spec: str
    torch: str
    settings: dict[str, Any]
    proximal: bool = False
    clip: bool = False


WEIGHTS = [1.0, 2.0, 0.5, 0.0]
LOSSES = (
    LossCase("plain", "softmax_cross_entropy", "cross_entropy", {}, True),
    LossCase("smoothed", "softmax_cross_entropy:label_smoothing=0.1", "cross_entropy", {"label_smoothing": 0.1}, True),
    LossCase("weighted", "softmax_cross_entropy:class_weights=1/2/0.5/0", "cross_entropy", {"weight": WEIGHTS}, True),
    LossCase(
        "weighted_smoothed",
        "softmax_cross_entropy:class_weights=1/2/0.5/0,label_smoothing=0.2",
        "cross_entropy",
        {"weight": WEIGHTS, "label_smoothing": 0.2},
        True,
    ),
    LossCase("ignored", "softmax_cross_entropy:ignore_index=2", "cross_entropy", {"ignore_index": 2}, True),
    LossCase("binary", "binary_cross_entropy", "binary_cross_entropy_with_logits", {}, False),
    LossCase("mse", "mse", "mse_loss", {}, False),
    LossCase("l1", "l1", "l1_loss", {}, False),
    LossCase("huber", "huber", "huber_loss", {}, False),
    LossCase("huber_delta", "huber:delta=0.3", "huber_loss", {"delta": 0.3}, False),
)
OPTIMIZERS = (
    OptimizerCase("sgd", "sgd", "SGD", {}),
    OptimizerCase("sgd_decay", "sgd:weight_decay=0.1", "SGD", {"weight_decay": 0.1}),
    OptimizerCase("momentum", "momentum", "SGD", {"momentum": 0.9}),
    OptimizerCase(
        "momentum_decay", "momentum:momentum=0.8,weight_decay=0.1", "SGD", {"momentum": 0.8, "weight_decay": 0.1}
    ),
    OptimizerCase("nesterov", "nesterov", "SGD", {"momentum": 0.9, "nesterov": True}),
    OptimizerCase("adam", "adam", "Adam", {}),
    OptimizerCase(
        "adam_settings", "adam:beta1=0.8,beta2=0.9,epsilon=0.001", "Adam", {"betas": (0.8, 0.9), "eps": 1e-3}
    ),
    OptimizerCase("adamw", "adamw", "AdamW", {}),
    OptimizerCase("adamw_decay", "adamw:weight_decay=0.3", "AdamW", {"weight_decay": 0.3}),
    OptimizerCase("proximal", "sgd", "SGD", {}, proximal=True),
    OptimizerCase("clipped", "sgd", "SGD", {}, clip=True),
    OptimizerCase("clipped_proximal_adam", "adam", "Adam", {}, proximal=True, clip=True),
)


def model(*, dropout: bool = False) -> bytes:
    """Two layers and, if asked for, a Dropout between them."""
    rng = np.random.default_rng(21)
    weights = {
        "w1": rng.standard_normal((INPUTS, 7)) * 0.5,
        "b1": rng.standard_normal(7) * 0.2,
        "w2": rng.standard_normal((7, CLASSES)) * 0.5,
        "b2": rng.standard_normal(CLASSES) * 0.2,
        **({"ratio": np.array(RATIO)} if dropout else {}),
    }
    nodes = [helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]), helper.make_node("Tanh", ["h"], ["a"])]
    nodes += [helper.make_node("Dropout", ["a", "ratio"], ["d"])] if dropout else []
    nodes += [helper.make_node("Gemm", ["d" if dropout else "a", "w2", "b2"], ["logits"])]
    arrays = {name: np.asarray(values, np.float32) for name, values in weights.items()}
    return classifier(nodes, arrays, inputs={"x": ("batch", INPUTS)})


def batches(*, of_classes: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """One batch per step; each ends in a row of padding."""
    rng = np.random.default_rng(22)
    found = []
    for _ in range(STEPS):
        x = rng.standard_normal((BATCH, INPUTS)).astype(np.float32)
        if of_classes:
            labels = rng.integers(0, CLASSES, BATCH)
            labels[:4] = range(4)
            labels[-1] = -1
        else:
            labels = rng.random((BATCH, CLASSES)).astype(np.float32)
            labels[-1] = np.nan
            labels[0, 1] = np.nan  # one of several is missing
        found.append((x, labels))
    return found


def anchors() -> dict[str, np.ndarray]:
    """Where the proximal term pulls to."""
    rng = np.random.default_rng(23)
    shapes = {"w1": (INPUTS, 7), "b1": (7,), "w2": (7, CLASSES), "b2": (CLASSES,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def uniform() -> np.ndarray:
    """The random numbers of the Dropout."""
    return np.random.default_rng(24).random((BATCH, 7), dtype=np.float32)
