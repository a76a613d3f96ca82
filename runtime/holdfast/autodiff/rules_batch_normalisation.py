"""Gradient of BatchNormalization, with frozen statistics or with those of the batch.

Frozen: Y = scale (X - mean) / std + bias is an affine map of X. With the batch's own statistics (Ioffe and Szegedy
2015, algorithm 1 and section 3), taken over the labelled rows only:
    dX = scale / std (dY - mean(dY) - xhat mean(dY xhat)); new running value = m old + (1 - m) of the batch.
The running variance takes the unbiased n / (n - 1) of the batch, as PyTorch does; the operator's own training mode
would take the biased one. A batch of padding alone leaves the running values as they are.
"""

from __future__ import annotations

import math

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
    mean = _over_rows(view, out, rows, x)
    centred = out.node("Sub", [x, _wide(view, out, mean)])
    variance = _over_rows(view, out, rows, out.node("Mul", [centred, centred]))
    deviation = out.node("Sqrt", [out.node("Add", [variance, out.scalar(view.real("epsilon", _EPSILON))])])
    inverse = out.node("Reciprocal", [deviation])
    factor = _wide(view, out, out.node("Mul", [inverse, scale]))
    out.node_as("Add", [out.node("Mul", [centred, factor]), _wide(view, out, bias)], [view.outputs[0]])
    _update_running(view, out, rows, mean, variance)
    return (centred, inverse)


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
    dx = dscale = None
    if view.wants(0):
        dx = out.node("Mul", [dy, _wide(view, out, out.node("Mul", [inverse, scale]))])
    if view.wants(1):
        centred = out.node("Sub", [x, _wide(view, out, mean)])
        dscale = out.node("Mul", [_channel_sum(view, out, out.node("Mul", [dy, centred])), inverse])
    dbias = _channel_sum(view, out, dy) if view.wants(2) else None
    return [dx, dscale, dbias]


def _batch(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """With c = X - mean: dX = f dY - c f (sum(dY c) / std^2) r - f sum(dY) r, f = scale / std, r each row's share."""
    if view.rows is None:
        raise AssertionError("statistics of the batch were saved without rows")
    centred, inverse = view.saved
    along = _channel_sum(view, out, out.node("Mul", [dy, centred]))
    total = _channel_sum(view, out, dy)
    dscale = out.node("Mul", [along, inverse]) if view.wants(1) else None
    if not view.wants(0):
        return [None, dscale, total]
    factor = out.node("Mul", [inverse, view.inputs[1]])
    bend = out.node("Mul", [out.node("Mul", [factor, along]), out.node("Mul", [inverse, inverse])])
    direct = out.node("Mul", [dy, _wide(view, out, factor)])
    curved = out.node("Mul", [centred, _row_share(view, out, view.rows, bend)])
    level = _row_share(view, out, view.rows, out.node("Mul", [factor, total]))
    return [out.node("Sub", [out.node("Sub", [direct, curved]), level]), dscale, total]


def _over_rows(view: NodeView, out: GraphWriter, rows: Rows, value: str) -> str:
    """float32[channels]: the mean over positions, then over labelled rows. One pass over the elements."""
    shape = view.input_shape(0)
    if len(shape) > 2:
        value = out.node("ReduceMean", [value, out.integers(*range(2, len(shape)))], keepdims=0)
    return out.node("Reshape", [out.node("MatMul", [rows.weights, value]), out.integers(shape[1])])


def _row_share(view: NodeView, out: GraphWriter, rows: Rows, per_channel: str) -> str:
    """float32[batch, channels, 1...]: each row's and position's share of a value per channel."""
    batch, channels, *rest = view.input_shape(0)
    weights = out.node("Reshape", [rows.weights, out.integers(batch, 1)])
    per_position = out.node("Mul", [weights, out.scalar(1.0 / math.prod(rest))])
    share = out.node("Mul", [per_position, out.node("Reshape", [per_channel, out.integers(1, channels)])])
    return out.node("Reshape", [share, out.integers(batch, channels, *(1 for _ in rest))])


def _channel_sum(view: NodeView, out: GraphWriter, value: str) -> str:
    axes = [axis for axis in range(len(view.input_shape(0))) if axis != 1]
    return out.node("ReduceSum", [value, out.integers(*axes)], keepdims=0)


def _wide(view: NodeView, out: GraphWriter, per_channel: str) -> str:
    """float32[channels] so that it broadcasts over X."""
    _, channels, *rest = view.input_shape(0)
    return out.node("Reshape", [per_channel, out.integers(1, channels, *(1 for _ in rest))])


RULES = (
    GradientRule(
        "BatchNormalization",
        "frozen: dX = dY scale / std; of the batch: dX = scale / std (dY - mean(dY) - xhat mean(dY xhat))",
        one_output(_backward),
        constant_inputs=(3, 4),
        forward=_forward,
    ),
)
