"""Numbers that a graph computes from shapes: exporters write `x.view(x.size(0), -1)` as Shape, Gather, Concat, Reshape.

A number is its value, or ROWS for the number of rows of the batch. Such numbers may be picked, put in order and joined,
and may say where rows lie (the target of a Reshape or Expand); nothing may compute with ROWS, since then an answer
would tell, or depend on, how many neighbours its row has. That a target keeps rows apart is for `row_layout` to show.

Rules: what is not understood here gives None and goes on to `row_rules`, where a tensor that counts rows is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from holdfast.inference.onnx_graph import Constant, Node
from holdfast.inference.row_shapes import ROWS, Size, Tensor

MAX_NUMBERS = 64  # a shape has fewer; longer tables of integers are data
_INT64, _BOOL = 7, 9

Arguments = Sequence[Tensor | None]


def numbers_of(node: Node, arguments: Arguments) -> Tensor | None:
    """The result of a node that gives numbers known from shapes and constants alone; None if it is not such a node."""
    rule = _RULES.get(node.operator)
    if rule is None or node.domain or node.graphs or not node.is_plain or len(node.outputs) != 1:
        return None
    found = rule(node, arguments)
    return None if found is None or len(found) > MAX_NUMBERS else found.tensor()


class _Known:
    """Numbers and the rank they stand in: 0 for a single one, 1 for a list. `kind` is their ONNX element type."""

    def __init__(self, numbers: Sequence[Size], rank: int, kind: int = _INT64) -> None:
        self.numbers, self.rank, self.kind = tuple(numbers), rank, kind

    def __len__(self) -> int:
        return len(self.numbers)

    def tensor(self) -> Tensor:
        shape = (len(self.numbers),) if self.rank else ()
        plain = [number for number in self.numbers if number is not ROWS]
        if len(plain) < len(self.numbers):
            return Tensor(shape, None, self.numbers)
        return Tensor(shape, np.array(plain, dtype=bool if self.kind == _BOOL else np.int64).reshape(shape))


def _known(arguments: Arguments, index: int) -> _Known | None:
    tensor = arguments[index] if index < len(arguments) else None
    if tensor is None or tensor.shape is None or len(tensor.shape) > 1 or tensor.has_rows:
        return None
    if tensor.numbers is not None:
        return _Known(tensor.numbers, len(tensor.shape))
    value = tensor.value
    if value is None or value.dtype not in (np.dtype(np.int64), np.dtype(bool)) or value.size > MAX_NUMBERS:
        return None
    numbers = [int(each) for each in value.ravel().tolist()]
    return _Known(numbers, len(tensor.shape), _INT64 if value.dtype == np.int64 else _BOOL)


def _plain(arguments: Arguments, index: int) -> list[int] | None:
    """Numbers that are all known, or None."""
    known = _known(arguments, index)
    if known is None:
        return None
    plain = [number for number in known.numbers if number is not ROWS]
    return plain if len(plain) == len(known) else None


def _shape(node: Node, arguments: Arguments) -> _Known | None:
    tensor = arguments[0] if arguments else None
    if tensor is None or tensor.shape is None:
        return None
    end = node.integers.get("end", len(tensor.shape))
    return _Known(tensor.shape[node.integers.get("start", 0) : end], 1)


def _gather(node: Node, arguments: Arguments) -> _Known | None:
    known, index = _known(arguments, 0), _known(arguments, 1)
    places = _plain(arguments, 1)
    if known is None or index is None or places is None or known.rank != 1 or node.integers.get("axis", 0):
        return None
    if any(not -len(known) <= place < len(known) for place in places):
        return None
    return _Known([known.numbers[place] for place in places], index.rank, known.kind)


def _slice(node: Node, arguments: Arguments) -> _Known | None:
    known = _known(arguments, 0)
    bounds = [_plain(arguments, index) for index in range(1, len(arguments))]
    if known is None or known.rank != 1 or len(bounds) < 2 or any(each is None or len(each) != 1 for each in bounds):
        return None
    start, end, axis, step = ([each[0] for each in bounds if each] + [0, 1][len(bounds) - 2 :])[:4]
    return _Known(known.numbers[start:end:step], 1, known.kind) if axis in (0, -1) and step > 0 else None


def _unsqueeze(node: Node, arguments: Arguments) -> _Known | None:
    known, axes = _known(arguments, 0), _plain(arguments, 1)
    return _Known(known.numbers, 1, known.kind) if known and known.rank == 0 and axes in ([0], [-1]) else None


def _squeeze(node: Node, arguments: Arguments) -> _Known | None:
    known = _known(arguments, 0)
    axes = _plain(arguments, 1) if len(arguments) > 1 else [0]
    fits = known is not None and known.rank == 1 and len(known) == 1 and axes in ([0], [-1])
    return _Known(known.numbers, 0, known.kind) if known and fits else None


def _concat(node: Node, arguments: Arguments) -> _Known | None:
    parts = [_known(arguments, index) for index in range(len(arguments))]
    known = [each for each in parts if each is not None and each.rank == 1]
    if len(known) < len(parts) or not known or node.integers.get("axis", 0) not in (0, -1):
        return None
    if len({each.kind for each in known}) > 1:
        return None
    return _Known([number for each in known for number in each.numbers], 1, known[0].kind)


def _flat(node: Node, arguments: Arguments) -> _Known | None:
    """A list of numbers told to be a list."""
    known = _known(arguments, 0)
    return _Known(known.numbers, 1, known.kind) if known is not None and _plain(arguments, 1) == [-1] else None


def _identity(node: Node, arguments: Arguments) -> _Known | None:
    return _known(arguments, 0)


def _cast(node: Node, arguments: Arguments) -> _Known | None:
    known = _known(arguments, 0)
    return known if known is not None and node.integers.get("to") == known.kind == _INT64 else None


def _filled(node: Node, arguments: Arguments) -> _Known | None:
    """A short list of one number over and over, such as the -1 that an exporter compares sizes with."""
    count = _plain(arguments, 0)
    value: Constant | None = node.tensors.get("value")
    if count is None or len(count) != 1 or not 0 <= count[0] <= MAX_NUMBERS:
        return None
    if value is None or value.value is None or value.value.dtype != np.int64 or value.value.size != 1:
        return None
    return _Known([int(value.value.item())] * count[0], 1)


def _times(node: Node, arguments: Arguments) -> _Known | None:
    left, right = _plain(arguments, 0), _plain(arguments, 1)
    known = [_known(arguments, index) for index in (0, 1)]
    if left is None or right is None or any(each is None or each.kind != _INT64 for each in known):
        return None
    made = np.array(left, dtype=object) * np.array(right, dtype=object) if _fit(left, right) else None
    if made is None or any(abs(int(each)) >= 2**62 for each in made):
        return None
    return _Known([int(each) for each in made], max(each.rank for each in known if each))


def _fit(left: Sequence[object], right: Sequence[object]) -> bool:
    return len(left) == len(right) or 1 in (len(left), len(right))


def _equal(node: Node, arguments: Arguments) -> _Known | None:
    """Whether numbers are the same. There are one or more rows, so ROWS is none of the numbers below 1."""
    left, right = _known(arguments, 0), _known(arguments, 1)
    if left is None or right is None or left.kind != right.kind or len(left) != len(right):
        return None
    found = []
    for a, b in zip(left.numbers, right.numbers, strict=True):
        if ROWS in (a, b) and (a is b or max(a or 0, b or 0) > 0):
            return None
        found.append(int(a is not ROWS and a == b))
    return _Known(found, max(left.rank, right.rank), _BOOL)


def _where(node: Node, arguments: Arguments) -> _Known | None:
    chosen, left, right = (_known(arguments, index) for index in range(3))
    if chosen is None or left is None or right is None or chosen.kind != _BOOL or left.kind != right.kind:
        return None
    if not len(chosen) == len(left) == len(right) or chosen.rank != 1:
        return None
    picked = [a if yes else b for yes, a, b in zip(chosen.numbers, left.numbers, right.numbers, strict=True)]
    return _Known(picked, 1, left.kind)


_RULES: dict[str, Callable[[Node, Arguments], _Known | None]] = {
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Equal": _equal,
    "Gather": _gather,
    "Identity": _identity,
    "Mul": _times,
    "Reshape": _flat,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
