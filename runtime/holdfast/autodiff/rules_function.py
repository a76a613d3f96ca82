"""Gradients of elementary functions of one value: exponentials, roots, circular functions, and what has slope 0.

Source: NIST Digital Library of Mathematical Functions, 4.2-4.40 and 7.2; written with Y where that saves keeping X.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx import TensorProto

from holdfast.autodiff.rule import GradientRule, NodeView, one_output
from holdfast.autodiff.writer import GraphWriter

Slope = Callable[[GraphWriter, str, str], str]  # (writer, X, Y) -> dY/dX


def _scaled_by(slope: Slope) -> Callable[[NodeView, GraphWriter, str], list[str | None]]:
    def emit(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
        return [out.node("Mul", [dy, slope(out, view.inputs[0], view.outputs[0])])]

    return emit


def _log(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return [out.node("Div", [dy, view.inputs[0]])]


def _sqrt(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return [out.node("Div", [dy, out.node("Add", [view.outputs[0], view.outputs[0]])])]


def _flat(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Steps have slope 0 wherever they have one."""
    return [None]


def _cast(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Only casts between floating types are on the way of a gradient; it is cast back."""
    return [out.node("Cast", [dy], to=int(TensorProto.FLOAT))]


def _erf(out: GraphWriter, x: str, y: str) -> str:
    square = out.node("Neg", [out.node("Mul", [x, x])])
    return out.node("Mul", [out.node("Exp", [square]), out.scalar(2 / math.sqrt(math.pi))])


def _one_plus_square(out: GraphWriter, value: str, sign: float) -> str:
    """1 + sign value^2."""
    return out.node("Add", [out.node("Mul", [out.node("Mul", [value, value]), out.scalar(sign)]), out.scalar(1.0)])


def _square_minus_one(out: GraphWriter, value: str) -> str:
    return out.node("Sub", [out.node("Mul", [value, value]), out.scalar(1.0)])


def _inverse_root(out: GraphWriter, value: str, sign: float) -> str:
    """sign / sqrt(value)."""
    return out.node("Div", [out.scalar(sign), out.node("Sqrt", [value])])


SLOPES: tuple[tuple[str, str, Slope], ...] = (
    ("Abs", "dX = dY sign(X)", lambda out, x, y: out.node("Sign", [x])),
    ("Exp", "dX = dY Y", lambda out, x, y: y),
    ("Reciprocal", "dX = -dY Y^2", lambda out, x, y: out.node("Neg", [out.node("Mul", [y, y])])),
    ("Erf", "dX = dY 2/sqrt(pi) exp(-X^2)", _erf),
    ("Sin", "dX = dY cos(X)", lambda out, x, y: out.node("Cos", [x])),
    ("Cos", "dX = -dY sin(X)", lambda out, x, y: out.node("Neg", [out.node("Sin", [x])])),
    ("Tan", "dX = dY (1 + Y^2)", lambda out, x, y: _one_plus_square(out, y, 1.0)),
    ("Sinh", "dX = dY cosh(X)", lambda out, x, y: out.node("Cosh", [x])),
    ("Cosh", "dX = dY sinh(X)", lambda out, x, y: out.node("Sinh", [x])),
    ("Asin", "dX = dY / sqrt(1 - X^2)", lambda out, x, y: _inverse_root(out, _one_plus_square(out, x, -1.0), 1.0)),
    ("Acos", "dX = -dY / sqrt(1 - X^2)", lambda out, x, y: _inverse_root(out, _one_plus_square(out, x, -1.0), -1.0)),
    ("Asinh", "dX = dY / sqrt(1 + X^2)", lambda out, x, y: _inverse_root(out, _one_plus_square(out, x, 1.0), 1.0)),
    ("Acosh", "dX = dY / sqrt(X^2 - 1)", lambda out, x, y: _inverse_root(out, _square_minus_one(out, x), 1.0)),
    ("Atanh", "dX = dY / (1 - X^2)", lambda out, x, y: out.node("Reciprocal", [_one_plus_square(out, x, -1.0)])),
    ("Atan", "dX = dY / (1 + X^2)", lambda out, x, y: out.node("Reciprocal", [_one_plus_square(out, x, 1.0)])),
)

RULES = (
    *(GradientRule(operator, formula, one_output(_scaled_by(slope))) for operator, formula, slope in SLOPES),
    GradientRule("Log", "dX = dY / X", one_output(_log)),
    GradientRule("Sqrt", "dX = dY / 2Y", one_output(_sqrt)),
    GradientRule("Cast", "dX = dY, cast back", one_output(_cast)),
    *(GradientRule(operator, "dX = 0", one_output(_flat)) for operator in ("Sign", "Floor", "Ceil", "Round")),
)
