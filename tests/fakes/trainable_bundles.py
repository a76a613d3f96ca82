"""Packed bundles of small classifiers, made by the author's own tools, and samples to train them with."""

from __future__ import annotations

from functools import cache

import numpy as np
from tests.fakes.models import he_mlp

from holdfast.author.pack import ModelFacts, TrainingPlan, pack
from holdfast.author.reference import Samples
from holdfast.trust.keys import ECDSA_P256, PrivateKey

FACTS = ModelFacts("small", "1", "o@example.org", "tests", labels=("a", "b", "c"), max_update_norm=50.0)


def samples(count: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    """x: float32[count, 4]; y: which of the first three is the largest."""
    x = np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)
    return {"x": x, "y": np.argmax(x[:, :3], axis=1)}


@cache
def packed(*, softmax: bool = False, trainable: str = "all", optimizer: str = "sgd") -> bytes:
    """A bundle of a 4-8-3 perceptron."""
    arrays = samples()
    plan = TrainingPlan(batch=10, trainable=trainable, optimizer=optimizer)
    reference = Samples({"input": arrays["x"]}, arrays["y"])
    model = he_mlp([4, 8, 3], softmax=softmax)
    return pack(model, FACTS, reference, PrivateKey.generate(ECDSA_P256), training=plan)


def numbers(count: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    """x: float32[count, 4]; y: float32[count, 2], a smooth function of it."""
    x = np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)
    return {"x": x, "y": np.stack([x[:, 0] + x[:, 1], 2 * x[:, 2] - 1], axis=1).astype(np.float32)}


@cache
def packed_with(plan: TrainingPlan, *, model: bytes = b"") -> bytes:
    """A bundle of any plan: of a 4-8-2 perceptron without labels' names, or of a given model with an input of 4."""
    facts = ModelFacts("numbers", "1", "o@example.org", "tests", max_update_norm=50.0)
    reference = Samples({"input": numbers()["x"]})
    return pack(model or he_mlp([4, 8, 2]), facts, reference, PrivateKey.generate(ECDSA_P256), training=plan)


@cache
def served_only() -> bytes:
    """The same without training graphs."""
    arrays = samples()
    reference = Samples({"input": arrays["x"]}, arrays["y"])
    return pack(he_mlp([4, 8, 3]), FACTS, reference, PrivateKey.generate(ECDSA_P256), training=None)
