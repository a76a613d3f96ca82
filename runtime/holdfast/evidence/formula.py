"""Arithmetic that a scorecard may declare: + - * /, parentheses, numbers, named values, min and max. Nothing else.

The text is parsed, never run: every node of the syntax tree is on a list of allowed ones, or the formula is refused.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

from holdfast.errors import FormatError

MAX_CHARACTERS = 1_000  # a formula is one line that a person checks by eye
MAX_NODES = 200  # bounds the depth of the recursion too

_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SIGNS: Mapping[type[ast.unaryop], Callable[[float], float]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_FUNCTIONS: Mapping[str, Callable[..., float]] = {"min": min, "max": max}


def names_in(formula: str) -> tuple[str, ...]:
    """The value names that `formula` uses, sorted. Raises FormatError if it is not a formula."""
    tree = _parse(formula)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return tuple(sorted({n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called}))


def compute(formula: str, values: Mapping[str, float]) -> float:
    """The value of `formula` for these named values.

    Raises:
        FormatError: not a formula, an unknown name, a division by zero, or a result that is not finite.
    """
    try:
        result = _value(_parse(formula), values)
    except ZeroDivisionError as error:
        raise FormatError(f"formula {formula!r} divides by zero") from error
    except OverflowError as error:
        raise FormatError(f"formula {formula!r} leaves the range of numbers") from error
    if not math.isfinite(result):
        raise FormatError(f"formula {formula!r} gives {result}, expected a finite number")
    return result


def _parse(formula: str) -> ast.expr:
    if len(formula) > MAX_CHARACTERS:
        raise FormatError(f"formula has {len(formula)} characters, at most {MAX_CHARACTERS} are read")
    try:
        tree = ast.parse(formula.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FormatError(f"formula {formula!r} is not arithmetic: {type(error).__name__}") from error
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise FormatError(f"formula has more than {MAX_NODES} parts")
    return tree


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]  # an int or float by the line above
    if isinstance(node, ast.Name):
        if node.id not in values:
            raise FormatError(f"formula uses {node.id!r}, known are {', '.join(sorted(values)) or 'none'}")
        return values[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, values), _value(node.right, values))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        return _SIGNS[type(node.op)](_value(node.operand, values))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        if not node.args or node.keywords:
            raise FormatError(f"{node.func.id} in a formula takes one or more plain values")
        return _FUNCTIONS[node.func.id]([_value(each, values) for each in node.args])
    raise FormatError(f"formula holds {type(node).__name__}; allowed are numbers, names, + - * / ( ), min and max")
