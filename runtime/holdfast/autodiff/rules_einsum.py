"""Gradient of Einsum.

Source: Y = sum of products over the letters that the result lacks; by each operand it is the same sum with that operand
and the result exchanged (Laue, Mitterreiter and Giesen 2020, "A simple and efficient tensor calculus", section 3).
Terms with a repeated letter (a diagonal) or an ellipsis are refused by name.
"""

from __future__ import annotations

from holdfast.autodiff.rule import GradientRule, NodeView, one_output
from holdfast.autodiff.writer import GraphWriter


def _einsum(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    equation = view.text("equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = sorted(set(left) - {","})
        result = "".join(letter for letter in letters if left.count(letter) == 1)
    if "." in equation or any(len(set(term)) < len(term) for term in terms):
        raise view.refusal(f"the equation {equation!r} has a repeated letter or an ellipsis")
    found: list[str | None] = []
    for index, term in enumerate(terms):
        if not view.wants(index):
            found.append(None)
            continue
        others = [(each, view.inputs[i]) for i, each in enumerate(terms) if i != index]
        known = set(result).union(*(each for each, _ in others))
        inner = "".join(letter for letter in term if letter in known)
        swapped = ",".join([result, *(each for each, _ in others)]) + "->" + inner
        value = out.node("Einsum", [dy, *(name for _, name in others)], equation=swapped)
        found.append(_spread(view, out, value, index, term, inner))
    return found


def _spread(view: NodeView, out: GraphWriter, value: str, index: int, term: str, inner: str) -> str:
    """A letter that only this operand has was summed: its gradient is the same along it."""
    if inner == term:
        return value
    shape = view.input_shape(index)
    kept = [size if letter in inner else 1 for letter, size in zip(term, shape, strict=True)]
    return out.node("Expand", [out.node("Reshape", [value, out.integers(*kept)]), out.integers(*shape)])


RULES = (GradientRule("Einsum", "dX_i = einsum(dY, the other operands -> X_i)", one_output(_einsum)),)
