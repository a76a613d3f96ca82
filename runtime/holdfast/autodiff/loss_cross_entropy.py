"""Softmax cross-entropy of logits and integer labels, with padding, class weights and label smoothing.

Formula: loss_b = - sum_c q_bc log softmax(z_b)_c with the target q_b; d loss_b / d z_b = softmax(z_b) sum_c q_bc - q_b
(Bishop 2006, eq. 4.108-4.109). q_b is one-hot at the label y; with smoothing e (Szegedy et al. 2016, section 7) and
class weights w it is (1 - e) w_y onehot(y) + e / classes w, and the mean divides by the sum of w_y, as PyTorch does.
The log-probabilities of the forward value give the gradient without another softmax and without overflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from holdfast.autodiff.loss import PADDING_LABEL, Loss, LossInputs, LossValues, labelled_classes
from holdfast.autodiff.reading import Head
from holdfast.autodiff.rule import as_float
from holdfast.autodiff.writer import GraphWriter
from holdfast.errors import AutodiffError

NAME = "softmax_cross_entropy"
LOGITS = Head(("Softmax", "LogSoftmax"), classes=True)


def softmax_cross_entropy(
    *, class_weights: Sequence[float] = (), label_smoothing: float = 0.0, ignore_index: int = PADDING_LABEL
) -> Loss:
    """The loss of a classifier.

    Args:
        class_weights: one per class, or none.
        label_smoothing: share of the target spread over all classes, in 0..1.
        ignore_index: a further label whose rows are left out, besides the padding's -1.
    """
    weights = tuple(float(weight) for weight in class_weights)
    if not 0.0 <= label_smoothing < 1.0:
        raise AutodiffError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
    if any(not (math.isfinite(weight) and weight >= 0) for weight in weights):
        raise AutodiffError("class_weights must be finite and not negative")

    def emit(out: GraphWriter, inputs: LossInputs, with_gradient: bool) -> LossValues:
        inputs = _without(out, inputs, ignore_index)
        if not weights and not label_smoothing:
            return _emit_plain(out, inputs, with_gradient)
        if weights and len(weights) != inputs.shape[1]:
            raise AutodiffError(f"{len(weights)} class_weights for {inputs.shape[1]} classes; give one per class")
        return _emit_weighted(out, inputs, weights or (1.0,) * inputs.shape[1], label_smoothing, with_gradient)

    def emit_correct(out: GraphWriter, inputs: LossInputs) -> str:
        """The label with the largest logit, the first one of equals; an ignored label is never predicted."""
        inputs = _without(out, inputs, ignore_index)
        predicted = out.node("ArgMax", [inputs.prediction], axis=1, keepdims=0)
        right = out.node("Cast", [out.node("Equal", [predicted, inputs.labels])], to=int(TensorProto.INT64))
        return out.node("ReduceSum", [right], keepdims=0)

    return Loss(NAME, LOGITS, emit, emit_correct)


def _without(out: GraphWriter, inputs: LossInputs, ignored: int) -> LossInputs:
    """The inputs with ignored labels turned into padding."""
    if ignored == PADDING_LABEL:
        return inputs
    mark = out.node("Equal", [inputs.labels, out.integer(ignored)])
    labels = out.node("Where", [mark, out.integer(PADDING_LABEL), inputs.labels])
    return LossInputs(inputs.prediction, labels, inputs.shape)


def _emit_plain(out: GraphWriter, inputs: LossInputs, with_gradient: bool) -> LossValues:
    """The log-probabilities of the labels are picked: the operator for this loss is seventeen nodes in the runtime."""
    log_probability = out.node("LogSoftmax", [inputs.prediction], axis=1)
    labels = out.node("Unsqueeze", [out.node("Max", [inputs.labels, out.integer(0)]), out.integers(1)])
    labelled = as_float(out, labelled_classes(out, inputs.labels))
    mask = out.node("Unsqueeze", [labelled, out.integers(1)])
    picked = out.node("Mul", [out.node("GatherElements", [log_probability, labels], axis=1), mask])
    total = out.node("Neg", [out.node("ReduceSum", [picked], keepdims=0)])
    count = out.node("ReduceSum", [labelled], keepdims=0)
    if not with_gradient:
        return LossValues(total, count, count, None)
    difference = out.node("Sub", [out.node("Exp", [log_probability]), _one_hot(out, inputs)])
    return LossValues(total, count, count, out.node("Mul", [difference, mask]))


def _emit_weighted(
    out: GraphWriter, inputs: LossInputs, weights: tuple[float, ...], smoothing: float, with_gradient: bool
) -> LossValues:
    classes = inputs.shape[1]
    labelled = as_float(out, labelled_classes(out, inputs.labels))
    per_class = out.constant(np.array(weights, dtype=np.float32))
    chosen = out.node("Mul", [_one_hot(out, inputs), per_class])
    target = out.node("Mul", [chosen, out.scalar(1.0 - smoothing)])
    if smoothing:
        spread = out.constant(np.array(weights, dtype=np.float32) * np.float32(smoothing / classes))
        target = out.node("Add", [target, spread])
    mask = out.node("Unsqueeze", [labelled, out.integers(1)])
    target = out.node("Mul", [target, mask])
    log_probability = out.node("LogSoftmax", [inputs.prediction], axis=1)
    total = out.node("Neg", [out.node("ReduceSum", [out.node("Mul", [target, log_probability])], keepdims=0)])
    divisor = out.node("ReduceSum", [out.node("Mul", [chosen, mask])], keepdims=0)
    count = out.node("ReduceSum", [labelled], keepdims=0)
    if not with_gradient:
        return LossValues(total, divisor, count, None)
    mass = out.node("ReduceSum", [target, out.integers(1)], keepdims=1)
    expected = out.node("Mul", [out.node("Exp", [log_probability]), mass])
    return LossValues(total, divisor, count, out.node("Sub", [expected, target]))


def _one_hot(out: GraphWriter, inputs: LossInputs) -> str:
    """float32[batch, classes]. A label of -1 selects the last class; whoever uses it masks the row."""
    ends = out.constant(np.array([0, 1], dtype=np.float32))
    return out.node("OneHot", [inputs.labels, out.integer(inputs.shape[1]), ends], axis=-1)
