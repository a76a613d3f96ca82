"""The operators that move values without computing, and when each of them keeps rows apart. A part of `row_rules`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from holdfast.inference.onnx_graph import Node
from holdfast.inference.row_shapes import ROWS, MixedRowsError, Shape, Tensor, axis_in, broadcast, row_elements, sizes

Arguments = Sequence[Tensor | None]
MAX_RANK = 64  # numpy's own ceiling


def _first(arguments: Arguments) -> Tensor:
    if not arguments or arguments[0] is None:
        raise MixedRowsError("has no input")
    return arguments[0]


def _list(node: Node, arguments: Arguments, index: int, name: str) -> tuple[int, ...] | None:
    """Numbers that are an input in newer operator sets and were an attribute before; None if not given."""
    argument = arguments[index] if index < len(arguments) else None
    return node.lists.get(name) if argument is None else argument.integers()


def _identity(_node: Node, arguments: Arguments) -> list[Shape]:
    return [_first(arguments).known()]


def _reshape(node: Node, arguments: Arguments) -> list[Shape]:
    shape = _first(arguments).known()
    wanted = _target(node, arguments)
    if wanted is None or (node.integers.get("allowzero", 0) and 0 in wanted) or wanted.count(-1) > 1:
        raise MixedRowsError("has a target shape that is not known")
    if any(size == 0 and axis >= len(shape) for axis, size in enumerate(wanted)) or min(wanted, default=1) < -1:
        raise MixedRowsError("has a target shape that does not fit")
    if not _first(arguments).has_rows:
        elements = math.prod(sizes(shape))
        return [_resolved(tuple(shape[a] if s == 0 else s for a, s in enumerate(wanted)), elements)]
    elements = row_elements(shape)
    if not wanted or wanted[0] > 0 or elements == 0:
        raise MixedRowsError("moves values between rows")
    rest = tuple(shape[axis] if size == 0 else size for axis, size in enumerate(wanted[1:], 1))
    return [(ROWS, *_resolved(rest, elements))]


def _target(node: Node, arguments: Arguments) -> tuple[int, ...] | None:
    """What a Reshape is told. The number of rows in front keeps rows as they are; anywhere else they would move."""
    argument = arguments[1] if len(arguments) > 1 else None
    if argument is None or argument.numbers is None:
        return _list(node, arguments, 1, "shape")
    rows, *rest = argument.numbers
    if rows is not ROWS or not _first(arguments).has_rows:
        raise MixedRowsError("moves values between rows")
    if node.integers.get("allowzero", 0) and 0 in rest:
        raise MixedRowsError("has a target shape that is not known")
    return (-1 if -1 not in rest else 0, *sizes(tuple(rest)))


def _resolved(shape: Shape, elements: int) -> tuple[int, ...]:
    known = math.prod(size for size in sizes(shape) if size != -1)
    full = tuple(elements // known if size == -1 and known else size for size in sizes(shape))
    if math.prod(full) != elements:
        raise MixedRowsError("moves values between rows")
    return full


def _flatten(node: Node, arguments: Arguments) -> list[Shape]:
    shape = _first(arguments).known()
    axis = node.integers.get("axis", 1)
    if (axis + len(shape) if axis < 0 else axis) != 1:
        raise MixedRowsError("joins the batch axis with another")
    return [(shape[0], math.prod(sizes(shape[1:])))]


def _transpose(node: Node, arguments: Arguments) -> list[Shape]:
    shape = _first(arguments).known()
    order = node.lists.get("perm", tuple(range(len(shape)))[::-1])
    if sorted(order) != list(range(len(shape))):
        raise MixedRowsError("has an order that does not fit")
    return [tuple(shape[axis] for axis in order)]


def _squeeze(node: Node, arguments: Arguments) -> list[Shape]:
    shape, axes = _first(arguments).known(), _list(node, arguments, 1, "axes")
    if axes is None:
        raise MixedRowsError("would also drop a batch axis of one row")
    gone = {axis_in(axis, len(shape)) for axis in axes}
    return [tuple(size for axis, size in enumerate(shape) if axis not in gone)]


def _unsqueeze(node: Node, arguments: Arguments) -> list[Shape]:
    shape, axes = _first(arguments).known(), _list(node, arguments, 1, "axes") or ()
    rank = len(shape) + len(axes)
    if rank > MAX_RANK:
        raise MixedRowsError("makes too many axes")
    new, rest = {axis_in(axis, rank) for axis in axes}, iter(shape)
    if len(new) != len(axes):
        raise MixedRowsError("names an axis twice")
    return [tuple(1 if axis in new else next(rest) for axis in range(rank))]


def _concat(node: Node, arguments: Arguments) -> list[Shape]:
    shapes = [each.known() for each in arguments if each is not None]
    rank = len(shapes[0])
    axis = axis_in(node.integers.get("axis", 0), rank)
    if any(shape[:axis] + shape[axis + 1 :] != shapes[0][:axis] + shapes[0][axis + 1 :] for shape in shapes):
        raise MixedRowsError("joins tensors of different shapes")
    joined = sum(sum(sizes(shape[axis : axis + 1])) for shape in shapes)
    return [(*shapes[0][:axis], joined, *shapes[0][axis + 1 :])]


def _split(node: Node, arguments: Arguments) -> list[Shape]:
    shape, parts = _first(arguments).known(), _list(node, arguments, 1, "split")
    axis = axis_in(node.integers.get("axis", 0), len(shape))
    (whole,) = sizes(shape[axis : axis + 1])
    if parts is None:
        share = math.ceil(whole / len(node.outputs))
        parts = tuple(min(share, whole - share * index) for index in range(len(node.outputs)))
    if sum(parts) != whole or len(parts) != len(node.outputs):
        raise MixedRowsError("has parts that do not fit")
    return [(*shape[:axis], part, *shape[axis + 1 :]) for part in parts]


def _slice(node: Node, arguments: Arguments) -> list[Shape]:
    shape = list(_first(arguments).known())
    starts, ends = _list(node, arguments, 1, "starts"), _list(node, arguments, 2, "ends")
    axes, steps = _list(node, arguments, 3, "axes"), _list(node, arguments, 4, "steps")
    if starts is None or ends is None or axes is None:
        raise MixedRowsError("cuts the batch axis")
    steps = steps or (1,) * len(axes)
    if not len(starts) == len(ends) == len(axes) == len(steps) == len(set(axes)) or min(steps, default=1) < 1:
        raise MixedRowsError("has starts, ends, axes or steps that do not fit")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = axis_in(axis, len(shape))
        (size,) = sizes((shape[at],))
        shape[at] = len(range(*slice(start, end, step).indices(size)))
    return [tuple(shape)]


def _pad(node: Node, arguments: Arguments) -> list[Shape]:
    shape, pads = _first(arguments).known(), _list(node, arguments, 1, "pads")
    if pads is None or len(pads) != 2 * len(shape) or len(arguments) > 3:
        raise MixedRowsError("has pads that are not known")
    if len(arguments) > 2 and arguments[2] is not None and arguments[2].has_rows:
        raise MixedRowsError("takes its parameters from the request")
    rank = len(shape)
    if pads[0] or pads[rank]:
        raise MixedRowsError("adds rows to the batch")
    rest = sizes(shape[1:])
    return [(shape[0], *(size + pads[axis] + pads[axis + rank] for axis, size in enumerate(rest, 1)))]


def _gather(node: Node, arguments: Arguments) -> list[Shape]:
    data = _first(arguments)
    index = arguments[1] if len(arguments) > 1 else None
    if index is None:
        raise MixedRowsError("has no indices")
    shape, places, axis = data.known(), index.known(), node.integers.get("axis", 0)
    if not -len(shape) <= axis < len(shape):
        raise MixedRowsError("has an axis that does not fit")
    axis %= len(shape)
    if data.has_rows and (index.has_rows or axis == 0):
        raise MixedRowsError("picks rows of the batch")
    return [shape[:axis] + places + shape[axis + 1 :]]


def _expand_like(_node: Node, arguments: Arguments) -> list[Shape]:
    shape = _first(arguments).known()
    target = arguments[1] if len(arguments) > 1 else None
    if target is None:
        raise MixedRowsError("has no shape")
    return [broadcast(shape, target.integers() if target.numbers is None else target.numbers)]


def _constant_of_shape(_node: Node, arguments: Arguments) -> list[Shape]:
    wanted = _first(arguments)
    return [wanted.integers() if wanted.numbers is None else wanted.numbers]


LAYOUT_RULES: dict[str, Callable[[Node, Arguments], list[Shape]]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand_like,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
