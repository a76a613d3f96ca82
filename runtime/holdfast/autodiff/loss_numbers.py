"""Losses of predictions against numbers of the same shape: binary cross-entropy with logits, MSE, L1, Huber.

Formulas, per element, with prediction z and label y; a label of NaN is left out, the mean is over the others:
    binary_cross_entropy   softplus(z) - z y, gradient sigmoid(z) - y          (Bishop 2006, eq. 4.90-4.91)
    mse                    (z - y)^2, gradient 2 (z - y)
    l1                     |z - y|, gradient sign(z - y)
    huber                  d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2); gradient clip(d, -delta, delta)
                           (Huber 1964), d = z - y
"""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx import TensorProto

from holdfast.autodiff.loss import Loss, LossInputs, LossValues, known_numbers
from holdfast.autodiff.reading import Head
from holdfast.autodiff.rule import as_float
from holdfast.autodiff.writer import GraphWriter
from holdfast.errors import AutodiffError

SCORES = Head(("Sigmoid",), classes=False)
NUMBERS = Head((), classes=False)

# (writer, prediction, labels without NaN) -> (loss per element, its gradient)
Elementwise = Callable[[GraphWriter, str, str], tuple[str, str]]


def binary_cross_entropy() -> Loss:
    """Each output is the logit of a yes or no of its own; labels are probabilities, usually 0 and 1."""

    def per_element(out: GraphWriter, z: str, y: str) -> tuple[str, str]:
        loss = out.node("Sub", [out.node("Softplus", [z]), out.node("Mul", [z, y])])
        return loss, out.node("Sub", [out.node("Sigmoid", [z]), y])

    return Loss("binary_cross_entropy", SCORES, _emitted(per_element), _emit_same_side)


def mse() -> Loss:
    """Mean squared error."""

    def per_element(out: GraphWriter, z: str, y: str) -> tuple[str, str]:
        difference = out.node("Sub", [z, y])
        return out.node("Mul", [difference, difference]), out.node("Add", [difference, difference])

    return Loss("mse", NUMBERS, _emitted(per_element), _emit_none)


def l1() -> Loss:
    """Mean absolute error."""

    def per_element(out: GraphWriter, z: str, y: str) -> tuple[str, str]:
        difference = out.node("Sub", [z, y])
        return out.node("Abs", [difference]), out.node("Sign", [difference])

    return Loss("l1", NUMBERS, _emitted(per_element), _emit_none)


def huber(*, delta: float = 1.0) -> Loss:
    """Squared near 0 and absolute beyond `delta`: one outlier pulls no harder than another."""
    if not (math.isfinite(delta) and delta > 0):
        raise AutodiffError(f"delta must be a positive number, got {delta}")

    def per_element(out: GraphWriter, z: str, y: str) -> tuple[str, str]:
        difference = out.node("Sub", [z, y])
        bounded = out.node("Clip", [difference, out.scalar(-delta), out.scalar(delta)])
        # d c - c^2 / 2 with c = clip(d): d^2 / 2 inside, delta |d| - delta^2 / 2 outside
        half = out.node("Mul", [bounded, out.scalar(0.5)])
        return out.node("Mul", [bounded, out.node("Sub", [difference, half])]), bounded

    return Loss("huber", NUMBERS, _emitted(per_element), _emit_none)


def _emitted(per_element: Elementwise) -> Callable[[GraphWriter, LossInputs, bool], LossValues]:
    def emit(out: GraphWriter, inputs: LossInputs, with_gradient: bool) -> LossValues:
        known = known_numbers(out, inputs.labels)
        labels = out.node("Where", [known, inputs.labels, out.scalar(0.0)])
        loss, gradient = per_element(out, inputs.prediction, labels)
        nothing = out.scalar(0.0)
        total = out.node("ReduceSum", [out.node("Where", [known, loss, nothing])], keepdims=0)
        count = out.node("ReduceSum", [as_float(out, known)], keepdims=0)
        return LossValues(total, count, count, out.node("Where", [known, gradient, nothing]) if with_gradient else None)

    return emit


def _emit_same_side(out: GraphWriter, inputs: LossInputs) -> str:
    """Yes is a logit above 0 and a label above 1/2; a NaN is above nothing, so it is masked."""
    predicted = out.node("Greater", [inputs.prediction, out.scalar(0.0)])
    same = out.node("Equal", [predicted, out.node("Greater", [inputs.labels, out.scalar(0.5)])])
    right = out.node("And", [same, known_numbers(out, inputs.labels)])
    return out.node("ReduceSum", [out.node("Cast", [right], to=int(TensorProto.INT64))], keepdims=0)


def _emit_none(out: GraphWriter, inputs: LossInputs) -> str:
    """A number is never simply right or wrong."""
    return out.integer(0)
