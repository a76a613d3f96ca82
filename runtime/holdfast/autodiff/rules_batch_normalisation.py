"""Gradient of BatchNormalization, with frozen statistics or with those of the batch.

Frozen: Y = scale (X - mean) / std + bias is an affine map of X. With the batch's own statistics (Ioffe and Szegedy
2015, algorithm 1 and section 3), taken over the labelled rows only:
    dX = scale / std (dY - mean(dY) - xhat mean(dY xhat)); new running value = m old + (1 - m) of the batch.
The running variance takes the unbiased n / (n - 1) of the batch, as PyTorch does; the operator's own training mode
would take the biased one. A batch of padding alone leaves the running values as they are.
"""

from __future__ import annotations

import math

from holdfast.autodiff.channels import affine, centred, channel_sum, row_affine
from holdfast.autodiff.rule import GradientRule, NodeView, Rows, one_output
from holdfast.autodiff.writer import GraphWriter

_EPSILON, _MOMENTUM = 1e-5, 0.9  # defaults of the operator


def _forward(view: NodeView, out: GraphWriter) -> tuple[str, ...]:
    """Y from the batch's statistics; returns X - mean and 1 / std. Without `rows` the node stays as it is."""
    rows = view.rows
    if rows is None:
        out.copy([view.node])
        return ()
    x, scale, bias = view.inputs[:3]
    shape = view.input_shape(0)
    mean = _over_rows(view, out, rows, x)
    middle = centred(out, x, shape, mean)
    variance = _over_rows(view, out, rows, out.node("Mul", [middle, middle]))
    deviation = out.node("Sqrt", [out.node("Add", [variance, out.scalar(view.real("epsilon", _EPSILON))])])
    inverse = out.node("Reciprocal", [deviation])
    made = affine(out, middle, shape, out.node("Mul", [inverse, scale]), bias)
    out.node_as("Identity", [made], [view.outputs[0]])
    _update_running(view, out, rows, mean, variance)
    return (middle, inverse)


def _update_running(view: NodeView, out: GraphWriter, rows: Rows, mean: str, variance: str) -> None:
    momentum = view.real("momentum", _MOMENTUM)
    elements = out.node("Mul", [rows.count, out.scalar(math.prod(view.input_shape(0)[2:]))])
    others = out.node("Max", [out.node("Sub", [elements, out.scalar(1.0)]), out.scalar(1.0)])
    unbiased = out.node("Mul", [variance, out.node("Div", [elements, others])])
    seen = out.node("Greater", [rows.count, out.scalar(0.0)])
    for name, found in ((view.inputs[3], mean), (view.inputs[4], unbiased)):
        kept = out.node("Mul", [name, out.scalar(momentum)])
        new = out.node("Add", [kept, out.node("Mul", [found, out.scalar(1.0 - momentum)])])
        out.updates[name] = out.node("Where", [seen, new, name])


def _backward(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return _batch(view, out, dy) if view.saved else _frozen(view, out, dy)


def _frozen(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    x, scale, _, mean, variance = view.inputs
    deviation = out.node("Sqrt", [out.node("Add", [variance, out.scalar(view.real("epsilon", _EPSILON))])])
    inverse = out.node("Reciprocal", [deviation])
    shape = view.input_shape(0)
    dx = dscale = None
    if view.wants(0):
        dx = affine(out, dy, shape, out.node("Mul", [inverse, scale]))
    if view.wants(1):
        along = out.node("Mul", [dy, centred(out, x, shape, mean)])
        dscale = out.node("Mul", [channel_sum(out, along, shape), inverse])
    dbias = channel_sum(out, dy, shape) if view.wants(2) else None
    return [dx, dscale, dbias]


def _batch(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """With c = X - mean: dX = f dY - c f (sum(dY c) / std^2) r - f sum(dY) r, f = scale / std, r each row's share."""
    if view.rows is None:
        raise AssertionError("statistics of the batch were saved without rows")
    middle, inverse = view.saved
    shape = view.input_shape(0)
    along = channel_sum(out, out.node("Mul", [dy, middle]), shape)
    total = channel_sum(out, dy, shape)
    dscale = out.node("Mul", [along, inverse]) if view.wants(1) else None
    if not view.wants(0):
        return [None, dscale, total]
    factor = out.node("Mul", [inverse, view.inputs[1]])
    bend = out.node("Mul", [out.node("Mul", [factor, along]), out.node("Mul", [inverse, inverse])])
    level = out.node("Mul", [factor, total])
    shares = [_row_share(view, out, view.rows, out.node("Neg", [each])) for each in (bend, level)]
    curved = row_affine(out, middle, shape, *shares)
    return [out.node("Add", [affine(out, dy, shape, factor), curved]), dscale, total]


def _over_rows(view: NodeView, out: GraphWriter, rows: Rows, value: str) -> str:
    """float32[channels]: the mean over positions, then over labelled rows. One pass over the elements."""
    shape = view.input_shape(0)
    if len(shape) > 2:
        value = out.node("ReduceMean", [value, out.integers(*range(2, len(shape)))], keepdims=0)
    return out.node("Reshape", [out.node("MatMul", [rows.weights, value]), out.integers(shape[1])])


def _row_share(view: NodeView, out: GraphWriter, rows: Rows, per_channel: str) -> str:
    """float32[batch, channels]: each row's and position's share of a value per channel."""
    batch, channels, *rest = view.input_shape(0)
    weights = out.node("Reshape", [rows.weights, out.integers(batch, 1)])
    per_position = out.node("Mul", [weights, out.scalar(1.0 / math.prod(rest))])
    return out.node("Mul", [per_position, out.node("Reshape", [per_channel, out.integers(1, channels)])])


RULES = (
    GradientRule(
        "BatchNormalization",
        "frozen: dX = dY scale / std; of the batch: dX = scale / std (dY - mean(dY) - xhat mean(dY xhat))",
        one_output(_backward),
        constant_inputs=(3, 4),
        forward=_forward,
    ),
)
