"""Gradients of the normalisations over one sample: Layer-, RMS-, Instance- and GroupNormalization, and LRN.

Source: with xhat = (X - mean) / std over a set of n elements and g = dY scale,
    dX = (g - mean(g) - xhat mean(g xhat)) / std          (Ba et al. 2016; Ioffe and Szegedy 2015, section 3)
and without the mean's own term for RMS normalisation (Zhang and Sennrich 2019). LRN: Krizhevsky et al. 2012,
section 3.3. The statistics are computed again on the way back, unless the operator hands them out.
"""

from __future__ import annotations

import math

from holdfast.autodiff.rule import GradientRule, NodeView, one_output, reduce_to_shape
from holdfast.autodiff.writer import GraphWriter


def _layer_forward(view: NodeView, out: GraphWriter) -> tuple[str, ...]:
    """The same node, asked for its statistics."""
    if len(view.outputs) > 1:
        raise view.refusal("its statistics are used as outputs")
    statistics = [out.fresh("LayerNormalization") for _ in ("mean", "inverse deviation")]
    axis, epsilon = view.integer("axis", -1), view.real("epsilon", 1e-5)
    out.node_as("LayerNormalization", view.inputs, [view.outputs[0], *statistics], axis=axis, epsilon=epsilon)
    return tuple(statistics)


def _layer(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    mean, inverse = view.saved
    shape = view.input_shape(0)
    axes = tuple(range(view.axis(-1), len(shape)))
    normal = out.node("Mul", [out.node("Sub", [view.inputs[0], mean]), inverse])
    dscale = _reduced(view, out, out.node("Mul", [dy, normal]), 1) if view.wants(1) else None
    dbias = _reduced(view, out, dy, 2) if view.wants(2) else None
    flow = out.node("Mul", [dy, view.inputs[1]])
    dx = _centred(out, flow, normal, inverse, axes) if view.wants(0) else None
    return [dx, dscale, dbias]


def _rms(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    x, axes = view.inputs[0], tuple(range(view.axis(-1), len(view.input_shape(0))))
    inverse = _inverse_deviation(out, out.node("Mul", [x, x]), axes, view.real("epsilon", 1e-5))
    normal = out.node("Mul", [x, inverse])
    dscale = _reduced(view, out, out.node("Mul", [dy, normal]), 1) if view.wants(1) else None
    flow = out.node("Mul", [dy, view.inputs[1]])
    dx = _scaled_back(out, flow, normal, inverse, axes) if view.wants(0) else None
    return [dx, dscale]


def _instance(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Statistics per sample and channel; scale and bias per channel."""
    return _in_groups(view, out, dy, view.input_shape(0)[1])


def _group(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Statistics per sample and group; scale and bias per channel (operator set 21; before, it was per group)."""
    return _in_groups(view, out, dy, view.integer("num_groups", 1))


def _in_groups(view: NodeView, out: GraphWriter, dy: str, groups: int) -> list[str | None]:
    batch, channels, *rest = view.input_shape(0)
    grouped = out.integers(batch, groups, -1)
    x = out.node("Reshape", [view.inputs[0], grouped])
    centred = out.node("Sub", [x, _mean(out, x, (2,))])
    squares = out.node("Mul", [centred, centred])
    inverse = _inverse_deviation(out, squares, (2,), view.real("epsilon", 1e-5))
    normal = out.node("Mul", [centred, inverse])
    per_channel = out.integers(batch, channels, -1)
    flow = out.node("Reshape", [dy, per_channel])
    found: list[str | None] = [None, None, None]
    if view.wants(1):
        product = out.node("Mul", [flow, out.node("Reshape", [normal, per_channel])])
        found[1] = out.node("ReduceSum", [product, out.integers(0, 2)], keepdims=0)
    if view.wants(2):
        found[2] = out.node("ReduceSum", [flow, out.integers(0, 2)], keepdims=0)
    if view.wants(0):
        scale = out.node("Reshape", [view.inputs[1], out.integers(1, channels, 1)])
        flow = out.node("Reshape", [out.node("Mul", [flow, scale]), grouped])
        dx = _centred(out, flow, normal, inverse, (2,))
        found[0] = out.node("Reshape", [dx, out.integers(batch, channels, *rest)])
    return found


def _lrn(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Y = X s^-beta, s = bias + alpha/n sum over n channels of X^2: dX = dY s^-beta - 2 alpha beta X avg'(dY Y / s).

    avg is the mean over the window of channels, zeros beyond the ends; avg' has the window mirrored.
    """
    x, y = view.inputs[0], view.outputs[0]
    shape, size = view.input_shape(0), view.integer("size", 1)
    alpha, beta, bias = view.real("alpha", 1e-4), view.real("beta", 0.75), view.real("bias", 1.0)
    before, after = (size - 1) // 2, size // 2
    squares = _channel_mean(out, out.node("Mul", [x, x]), shape, before, after)
    s = out.node("Add", [out.node("Mul", [squares, out.scalar(alpha)]), out.scalar(bias)])
    direct = out.node("Mul", [dy, out.node("Pow", [s, out.scalar(-beta)])])
    through = _channel_mean(out, out.node("Div", [out.node("Mul", [dy, y]), s]), shape, after, before)
    rest = out.node("Mul", [out.node("Mul", [x, through]), out.scalar(2 * alpha * beta)])
    return [out.node("Sub", [direct, rest])]


def _channel_mean(out: GraphWriter, value: str, shape: tuple[int, ...], before: int, after: int) -> str:
    batch, channels, *rest = shape
    image = out.node("Reshape", [value, out.integers(batch, 1, channels, math.prod(rest))])
    window = (before + after + 1, 1)
    mean = out.node("AveragePool", [image], kernel_shape=window, pads=(before, 0, after, 0), count_include_pad=1)
    return out.node("Reshape", [mean, out.integers(*shape)])


def _centred(out: GraphWriter, flow: str, normal: str, inverse: str, axes: tuple[int, ...]) -> str:
    """(g - mean(g) - xhat mean(g xhat)) / std."""
    return _scaled_back(out, out.node("Sub", [flow, _mean(out, flow, axes)]), normal, inverse, axes)


def _scaled_back(out: GraphWriter, flow: str, normal: str, inverse: str, axes: tuple[int, ...]) -> str:
    """(g - xhat mean(g xhat)) / std; mean(g xhat) is the same for a g less its mean, since xhat sums to 0 then."""
    along = out.node("Mul", [normal, _mean(out, out.node("Mul", [flow, normal]), axes)])
    return out.node("Mul", [out.node("Sub", [flow, along]), inverse])


def _inverse_deviation(out: GraphWriter, squares: str, axes: tuple[int, ...], epsilon: float) -> str:
    variance = out.node("Add", [_mean(out, squares, axes), out.scalar(epsilon)])
    return out.node("Reciprocal", [out.node("Sqrt", [variance])])


def _mean(out: GraphWriter, value: str, axes: tuple[int, ...]) -> str:
    return out.node("ReduceMean", [value, out.integers(*axes)], keepdims=1)


def _reduced(view: NodeView, out: GraphWriter, value: str, index: int) -> str:
    return reduce_to_shape(out, value, view.input_shape(0), view.input_shape(index))


_CENTRED = "dX = (g - mean(g) - xhat mean(g xhat)) / std, g = dY scale; dscale = sum(dY xhat), dbias = sum(dY)"

RULES = (
    GradientRule("LayerNormalization", _CENTRED, one_output(_layer), forward=_layer_forward),
    GradientRule("RMSNormalization", "dX = (g - xhat mean(g xhat)) / rms; dscale = sum(dY xhat)", one_output(_rms)),
    GradientRule("InstanceNormalization", _CENTRED, one_output(_instance)),
    GradientRule("GroupNormalization", _CENTRED, one_output(_group)),
    GradientRule("LRN", "dX = dY s^-beta - 2 alpha beta X avg'(dY Y / s)", one_output(_lrn)),
)
