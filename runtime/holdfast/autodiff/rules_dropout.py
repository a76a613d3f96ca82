"""Gradient of Dropout: units are dropped in training if the build asks for it, else it is the identity.

Y = X m / (1 - ratio), m = [u >= ratio] (Srivastava et al. 2014, inverted scaling). The uniform numbers u are an input
of the graph, `<output>.uniform`, filled by the trainer: an operator's own generator would run one fixed stream per
session, so that neither a restart nor the same seed would give the same weights again.
"""

from __future__ import annotations

from holdfast.autodiff.rule import GradientRule, NodeView, as_float, one_output
from holdfast.autodiff.writer import GraphWriter

UNIFORM = ".uniform"
_RATIO = 0.5  # default of the operator


def _forward(view: NodeView, out: GraphWriter) -> tuple[str, ...]:
    ratio = view.constant(1)
    share = _RATIO if ratio is None else float(ratio.item())
    if not view.dropout or share == 0.0:
        out.copy([view.node])
        return ()
    if not 0.0 < share < 1.0:
        raise view.refusal(f"the ratio {share} is not below 1")
    uniform = out.make_noise(view.outputs[0] + UNIFORM, view.input_shape(0))
    kept = as_float(out, out.node("GreaterOrEqual", [uniform, out.scalar(share)]))
    factor = out.node("Mul", [kept, out.scalar(1.0 / (1.0 - share))])
    out.node_as("Mul", [view.inputs[0], factor], [view.outputs[0]])
    return (factor,)


def _backward(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return [out.node("Mul", [dy, view.saved[0]]) if view.saved else dy]


RULES = (
    GradientRule(
        "Dropout",
        "frozen: dX = dY; dropping: dX = dY [u >= ratio] / (1 - ratio)",
        one_output(_backward),
        constant_inputs=(1, 2),
        forward=_forward,
    ),
)
