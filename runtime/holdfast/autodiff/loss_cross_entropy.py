"""Softmax cross-entropy of logits and integer labels, with an ignored label.

Formula: loss_b = -log softmax(z_b)[y_b]; d loss_b / d z_b = softmax(z_b) - onehot(y_b) (Bishop 2006, eq. 4.108-4.109).
The forward value is ONNX SoftmaxCrossEntropyLoss, whose second output, the log-probabilities, gives the gradient
without another softmax and without overflow.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from holdfast.autodiff.loss import IGNORE_INDEX, Loss, LossValues
from holdfast.autodiff.rule import as_float
from holdfast.autodiff.writer import GraphWriter


def _emit(out: GraphWriter, logits: str, labels: str, classes: int, with_gradient: bool) -> LossValues:
    """logits: float32[batch, classes]; labels: int64[batch], 0 <= label < classes or IGNORE_INDEX."""
    total, log_probability = out.nodes_out(
        "SoftmaxCrossEntropyLoss", [logits, labels], 2, reduction="sum", ignore_index=IGNORE_INDEX
    )
    labelled = as_float(out, _labelled(out, labels))
    count = out.node("ReduceSum", [labelled], keepdims=0)
    if not with_gradient:
        return LossValues(total, count, None)
    # an ignored label of -1 selects the last class in OneHot; the mask below removes the whole row
    depth = out.constant(np.array(classes, dtype=np.int64))
    targets = out.node("OneHot", [labels, depth, out.constant(np.array([0, 1], dtype=np.float32))], axis=-1)
    difference = out.node("Sub", [out.node("Exp", [log_probability]), targets])
    mask = out.node("Unsqueeze", [labelled, out.integers(1)])
    return LossValues(total, count, out.node("Mul", [difference, mask]))


def _emit_correct(out: GraphWriter, logits: str, labels: str) -> str:
    """The label with the largest logit, the first one of equals; an ignored label is never predicted."""
    predicted = out.node("ArgMax", [logits], axis=1, keepdims=0)
    right = out.node("Cast", [out.node("Equal", [predicted, labels])], to=int(TensorProto.INT64))
    return out.node("ReduceSum", [right], keepdims=0)


def _labelled(out: GraphWriter, labels: str) -> str:
    ignored = out.node("Equal", [labels, out.constant(np.array(IGNORE_INDEX, dtype=np.int64))])
    return out.node("Not", [ignored])


SOFTMAX_CROSS_ENTROPY = Loss("softmax_cross_entropy", _emit, _emit_correct)
