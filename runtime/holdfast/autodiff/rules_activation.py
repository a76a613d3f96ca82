"""Gradients of the activation functions.

Sources: the definitions in the ONNX operator specification, differentiated; Elu: Clevert et al. 2016; Selu: Klambauer
et al. 2017; Gelu: Hendrycks and Gimpel 2016; Swish: Ramachandran et al. 2017; Mish: Misra 2019. At a kink the
subgradient is the one of PyTorch.
"""

from __future__ import annotations

import math

from holdfast.autodiff.channels import line
from holdfast.autodiff.rule import GradientRule, NodeView, as_float, kept_where, one_output, reduced
from holdfast.autodiff.writer import GraphWriter


def _relu(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """The subgradient at 0 is taken as 0, as everywhere (Glorot et al. 2011; PyTorch and TensorFlow do the same).

    It reads Y instead of X (Y > 0 iff X > 0), so that X need not be kept in memory for the backward pass.
    """
    return [kept_where(out, out.node("Greater", [view.outputs[0], out.scalar(0.0)]), dy)]


def _leaky_relu(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """The slope is alpha + (1 - alpha) [X > 0]."""
    alpha = view.real("alpha", 0.01)
    above = as_float(out, out.node("Greater", [view.inputs[0], out.scalar(0.0)]))
    slope = out.node("Add", [_times(out, above, 1.0 - alpha), out.scalar(alpha)])
    return [out.node("Mul", [dy, slope])]


def _prelu(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    x, slope = view.inputs
    dx = _where_positive(out, x, dy, out.node("Mul", [dy, slope])) if view.wants(0) else None
    ds = None
    if view.wants(1):
        below = out.node("Min", [x, out.scalar(0.0)])
        ds = reduced(view, out, out.node("Mul", [dy, below]), 1)
    return [dx, ds]


def _elu(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Y = X where X > 0, else gamma alpha (exp(X) - 1); the slope below 0 is Y + gamma alpha. Covers Selu and Elu."""
    selu = view.node.op_type == "Selu"
    alpha = view.real("alpha", 1.67326319217681884765625 if selu else 1.0)
    gamma = view.real("gamma", 1.05070102214813232421875) if selu else 1.0
    below = out.node("Mul", [dy, out.node("Add", [view.outputs[0], out.scalar(alpha * gamma)])])
    above = dy if gamma == 1.0 else out.node("Mul", [dy, out.scalar(gamma)])
    return [_where_positive(out, view.inputs[0], above, below)]


def _celu(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Y = alpha (exp(X / alpha) - 1) below 0, where the slope is Y / alpha + 1."""
    slope = out.node("Add", [_times(out, view.outputs[0], 1 / view.real("alpha", 1.0)), out.scalar(1.0)])
    return [_where_positive(out, view.inputs[0], dy, out.node("Mul", [dy, slope]))]


def _sigmoid(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return [out.node("Mul", [dy, _logistic_slope(out, view.outputs[0])])]


def _tanh(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    y = view.outputs[0]
    return [out.node("Mul", [dy, out.node("Sub", [out.scalar(1.0), out.node("Mul", [y, y])])])]


def _softplus(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return [out.node("Mul", [dy, out.node("Sigmoid", [view.inputs[0]])])]


def _softsign(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Y = X / (1 + |X|): slope 1 / (1 + |X|)^2."""
    bottom = out.node("Add", [out.node("Abs", [view.inputs[0]]), out.scalar(1.0)])
    return [out.node("Div", [dy, out.node("Mul", [bottom, bottom])])]


def _hard_sigmoid(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Y = max(0, min(1, alpha X + beta)): slope alpha strictly between the bounds."""
    return [_times(out, _where_between(out, view.outputs[0], dy), view.real("alpha", 0.2))]


def _hard_swish(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Y = X s with s = clip(X / 6 + 1/2, 0, 1): slope s + X / 6 strictly between the bounds, else s."""
    x = view.inputs[0]
    gate = out.node("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
    inner = _where_between(out, gate, _times(out, x, 1 / 6))
    return [out.node("Mul", [dy, out.node("Add", [gate, inner])])]


def _swish(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Y = X s(alpha X): slope s + alpha Y (1 - s)."""
    alpha = view.real("alpha", 1.0)
    gate = out.node("Sigmoid", [_times(out, view.inputs[0], alpha)])
    rest = out.node("Mul", [_times(out, view.outputs[0], alpha), out.node("Sub", [out.scalar(1.0), gate])])
    return [out.node("Mul", [dy, out.node("Add", [gate, rest])])]


def _mish(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Y = X t, t = tanh(softplus(X)): slope t + X (1 - t^2) sigmoid(X)."""
    x = view.inputs[0]
    t = out.node("Tanh", [out.node("Softplus", [x])])
    inner = out.node("Mul", [out.node("Sub", [out.scalar(1.0), out.node("Mul", [t, t])]), out.node("Sigmoid", [x])])
    return [out.node("Mul", [dy, out.node("Add", [t, out.node("Mul", [x, inner])])])]


def _gelu_forward(view: NodeView, out: GraphWriter) -> tuple[str, ...]:
    """Y = X Phi(X) = sqrt(2/pi) s G with s = X / sqrt 2 and G = sqrt(pi) Phi(X) = sqrt(pi)/2 (1 + erf(s)).

    So scaled, both factors can go into matrix products before and behind, and the slope needs no factor within.
    """
    if view.text("approximate", "none") == "tanh":
        out.copy([view.node])
        return ()
    x, shape, half = view.inputs[0], view.input_shape(0), 0.5 * math.sqrt(math.pi)
    small = _times(out, x, math.sqrt(0.5))
    grown = line(out, out.node("Erf", [small]), shape, half, half)
    out.node_as("Mul", [out.node("Mul", [small, grown]), out.scalar(math.sqrt(2 / math.pi))], [view.outputs[0]])
    return (small, grown)


def _gelu(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Slope Phi(X) + X phi(X) = (G + s / exp(s^2)) / sqrt(pi)."""
    if not view.saved:
        return [out.node("Mul", [dy, _gelu_tanh_slope(out, view.inputs[0])])]
    small, grown = view.saved
    density = out.node("Div", [small, out.node("Exp", [out.node("Mul", [small, small])])])
    flow = _times(out, dy, 1 / math.sqrt(math.pi))
    return [out.node("Mul", [flow, out.node("Add", [grown, density])])]


def _gelu_tanh_slope(out: GraphWriter, x: str) -> str:
    """Y = X (1 + t) / 2, t = tanh(k (X + c X^3)): slope (1 + t) / 2 + X (1 - t^2) k (1 + 3 c X^2) / 2."""
    k, c = math.sqrt(2 / math.pi), 0.044715
    square = out.node("Mul", [x, x])
    inner = out.node("Mul", [x, out.node("Add", [_times(out, square, k * c), out.scalar(k)])])
    t = out.node("Tanh", [inner])
    half = _times(out, out.node("Add", [t, out.scalar(1.0)]), 0.5)
    bend = out.node("Add", [_times(out, square, 1.5 * k * c), out.scalar(0.5 * k)])
    steep = out.node("Sub", [out.scalar(1.0), out.node("Mul", [t, t])])
    return out.node("Add", [half, out.node("Mul", [out.node("Mul", [x, steep]), bend])])


def _logistic_slope(out: GraphWriter, y: str) -> str:
    return out.node("Mul", [y, out.node("Sub", [out.scalar(1.0), y])])


def _where_positive(out: GraphWriter, value: str, then: str, otherwise: str) -> str:
    return out.node("Where", [out.node("Greater", [value, out.scalar(0.0)]), then, otherwise])


def _where_between(out: GraphWriter, value: str, then: str) -> str:
    """`then` where 0 < value < 1, else 0. The product, since a Where would need a second comparison and an And."""
    above = as_float(out, out.node("Greater", [value, out.scalar(0.0)]))
    below = as_float(out, out.node("Less", [value, out.scalar(1.0)]))
    return out.node("Mul", [then, out.node("Mul", [above, below])])


def _times(out: GraphWriter, value: str, factor: float) -> str:
    return value if factor == 1.0 else out.node("Mul", [value, out.scalar(factor)])


RULES = (
    GradientRule("Relu", "dX = dY where Y > 0, else 0", one_output(_relu)),
    GradientRule("LeakyRelu", "dX = dY where X > 0, else alpha dY", one_output(_leaky_relu)),
    GradientRule("PRelu", "dX = dY where X > 0, else slope dY; dslope = sum(dY min(X, 0))", one_output(_prelu)),
    GradientRule("Elu", "dX = dY where X > 0, else dY (Y + alpha)", one_output(_elu)),
    GradientRule("Selu", "dX = gamma dY where X > 0, else dY (Y + gamma alpha)", one_output(_elu)),
    GradientRule("Celu", "dX = dY where X > 0, else dY (Y / alpha + 1)", one_output(_celu)),
    GradientRule("Sigmoid", "dX = dY Y (1 - Y)", one_output(_sigmoid)),
    GradientRule("Tanh", "dX = dY (1 - Y^2)", one_output(_tanh)),
    GradientRule("Softplus", "dX = dY sigmoid(X)", one_output(_softplus)),
    GradientRule("Softsign", "dX = dY / (1 + abs X)^2", one_output(_softsign)),
    GradientRule("HardSigmoid", "dX = alpha dY where 0 < Y < 1, else 0", one_output(_hard_sigmoid)),
    GradientRule("HardSwish", "dX = dY (s + X/6 [0 < s < 1]), s = clip(X/6 + 1/2, 0, 1)", one_output(_hard_swish)),
    GradientRule("Swish", "dX = dY (s + alpha Y (1 - s)), s = sigmoid(alpha X)", one_output(_swish)),
    GradientRule("Mish", "dX = dY (t + X (1 - t^2) sigmoid(X)), t = tanh(softplus(X))", one_output(_mish)),
    GradientRule(
        "Gelu", "dX = dY (Phi(X) + X phi(X)); with tanh: its own derivative", one_output(_gelu), forward=_gelu_forward
    ),
)
