"""Gradients of Softmax, LogSoftmax and the cross-entropy of scores inside a model.

Source: Bishop 2006, section 4.3.4: the Jacobian of the softmax is diag(Y) - Y Y^T along the axis.
"""

from __future__ import annotations

import numpy as np

from holdfast.autodiff.rule import GradientRule, NodeView, as_float, one_output
from holdfast.autodiff.writer import GraphWriter


def _softmax(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    y, axes = view.outputs[0], out.integers(view.axis(-1))
    flow = out.node("ReduceSum", [out.node("Mul", [dy, y]), axes], keepdims=1)
    return [out.node("Mul", [y, out.node("Sub", [dy, flow])])]


def _log_softmax(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    flow = out.node("ReduceSum", [dy, out.integers(view.axis(-1))], keepdims=1)
    return [out.node("Sub", [dy, out.node("Mul", [out.node("Exp", [view.outputs[0]]), flow])])]


def _cross_entropy(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """L_n = -w[t_n] log softmax(X)_n[t_n]; dX_n = dL_n w[t_n] (softmax(X)_n - onehot(t_n)); mean divides by sum w."""
    scores, labels = view.inputs[0], view.inputs[1]
    classes = view.input_shape(0)[1]
    depth = out.constant(np.array(classes, dtype=np.int64))
    ends = out.constant(np.array([0, 1], dtype=np.float32))
    label_weight = _label_weights(view, out, labels)
    # a label that is ignored may lie outside the classes; OneHot makes a row of zeros of it, or its weight is 0
    targets = out.node("OneHot", [labels, depth, ends], axis=1)
    reduction = view.text("reduction", "mean")
    flow = dy if reduction == "none" else out.node("Mul", [dy, label_weight])
    if reduction == "none":
        flow = out.node("Mul", [flow, label_weight])
    elif reduction == "mean":
        flow = out.node("Div", [flow, out.node("ReduceSum", [label_weight], keepdims=0)])
    difference = out.node("Sub", [out.node("Softmax", [scores], axis=1), targets])
    return [out.node("Mul", [difference, out.node("Unsqueeze", [flow, out.integers(1)])])]


def _label_weights(view: NodeView, out: GraphWriter, labels: str) -> str:
    """float32 of the labels' shape: the weight of each label's class, 0 where it is ignored."""
    ignored = view.integer("ignore_index", 0) if view.has_attribute("ignore_index") else None
    if ignored is None:
        kept, safe = out.node("Equal", [labels, labels]), labels
    else:
        mark = out.constant(np.array(ignored, dtype=np.int64))
        kept = out.node("Not", [out.node("Equal", [labels, mark])])
        safe = out.node("Where", [kept, labels, out.constant(np.array(0, dtype=np.int64))])
    weight = as_float(out, kept)
    return out.node("Mul", [weight, out.node("Gather", [view.inputs[2], safe])]) if view.has(2) else weight


RULES = (
    GradientRule("Softmax", "dX = Y (dY - sum(dY Y))", one_output(_softmax)),
    GradientRule("LogSoftmax", "dX = dY - exp(Y) sum(dY)", one_output(_log_softmax)),
    GradientRule(
        "SoftmaxCrossEntropyLoss",
        "dX = dL w (softmax(X) - onehot(label)), 0 where ignored",
        one_output(_cross_entropy),
        constant_inputs=(1, 2),
    ),
)
