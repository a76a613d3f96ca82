"""Gradient of the discrete Fourier transform.

Source: Y = F X is linear with F symmetric, so over pairs of real and imaginary parts dX = conj(F) dY: the transform the
other way round, without its factor 1/n (Oppenheim and Schafer 2010, section 8.2; operator specification of DFT).
"""

from __future__ import annotations

from holdfast.autodiff.rule import GradientRule, NodeView, one_output
from holdfast.autodiff.rules_shape import sliced
from holdfast.autodiff.writer import GraphWriter


def _transform(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """A one-sided result is the half of a whole one: the other half gets no gradient, so zeros stand in for it."""
    shape, made = view.input_shape(0), view.output_shape()
    axis = _axis(view, len(shape))
    size, inverse = shape[axis], view.integer("inverse", 0)
    lengths = view.constant_integers(1)
    if lengths is not None and lengths != (size,):
        raise view.refusal(f"a length of {lengths[0]} along an axis of {size} cuts or pads, which has no rule")
    if view.integer("onesided", 0):
        if inverse:
            raise view.refusal("the inverse of a one-sided transform has no rule")
        pads = [0] * (2 * len(made))
        pads[len(made) + axis] = size - made[axis]
        dy = out.node("Pad", [dy, out.integers(*pads)])
    found = out.node("DFT", [dy, "", out.integer(axis)], inverse=1 - inverse)
    factor = 1.0 / size if inverse else float(size)  # the operator divides by n on the way back
    found = out.node("Mul", [found, out.scalar(factor)])
    return [found if shape[-1] == 2 else sliced(out, found, len(shape) - 1, 0, 1)]


def _axis(view: NodeView, rank: int) -> int:
    given = view.constant_integers(2)
    return (given[0] if given else -2) % rank


RULES = (GradientRule("DFT", "dX = the transform of dY the other way round, times n", one_output(_transform), (1, 2)),)
