"""The operators known to keep rows apart, and for each of them when it does.

Rules: an operator that is not in RULES mixes. A rule returns the shapes of a node's outputs, or raises; `apply` then
checks that rows are still the first axis and nothing else. Each operator has a test that shows its rows stay apart, and
those that can work along the batch axis have one that shows it is refused. Defaults: onnx operators, opset 13 to 22.

Never here: DynamicQuantizeLinear and its kin (one scale for the whole batch), whatever draws random numbers, Size,
control flow. Shape tells how many neighbours a row has: only `row_sizes` knows it, and what comes of it may do nothing
but say where rows lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from holdfast.inference.onnx_graph import Node
from holdfast.inference.row_layout import LAYOUT_RULES
from holdfast.inference.row_shapes import ROWS, MixedRowsError, Shape, Tensor, axis_in, broadcast, checked, sizes

# inputs that may hold the number of rows, to say where rows lie
TARGETS = {"Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,)}
MIN_OPSET, MAX_OPSET = 13, 22  # before 13 Softmax and the reductions meant something else

Arguments = Sequence[Tensor | None]
Rule = Callable[[Node, Arguments], list[Shape]]

_ELEMENTWISE = (
    *(
        "Abs",
        "Acos",
        "Asin",
        "Atan",
        "Cast",
        "Ceil",
        "Celu",
        "Cos",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
    ),
    *("HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu"),
    *("Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu"),
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mul"),
    *("Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare"),
)


def apply(node: Node, arguments: Arguments) -> list[Shape]:
    """The shapes of a node's outputs.

    Raises:
        MixedRowsError: the node may mix rows; the reason says how.
    """
    rule = RULES.get(node.operator)
    if node.domain or rule is None:
        name = f"{node.domain}.{node.operator}" if node.domain else node.operator
        raise MixedRowsError(f"operator {name} is not known to keep rows apart")
    if node.graphs or not node.is_plain:
        raise MixedRowsError(f"operator {node.operator} holds a graph, or attributes that can be read in two ways")
    if not arguments or arguments[0] is None or not node.outputs:
        raise MixedRowsError(f"operator {node.operator} has no input, or no output")
    places = TARGETS.get(node.operator, ())
    if any(each is not None and each.counts_rows and i not in places for i, each in enumerate(arguments)):
        raise MixedRowsError(f"operator {node.operator} computes with the number of rows")
    try:
        shapes = rule(node, arguments)
        if len(shapes) < len(node.outputs):
            raise MixedRowsError(
                f"gives {len(node.outputs)} outputs, of which {len(shapes)} are known to keep rows apart"
            )
        has_rows = any(each is not None and each.has_rows for each in arguments)
        return [checked(shape) if has_rows or ROWS in shape else shape for shape in shapes]
    except MixedRowsError as error:
        raise MixedRowsError(f"operator {node.operator} {error}") from error


def given(arguments: Arguments, index: int) -> Tensor:
    """The argument at `index`, which must be there."""
    argument = arguments[index] if index < len(arguments) else None
    if argument is None:
        raise MixedRowsError(f"has no input {index}")
    return argument


def _fixed(arguments: Arguments, first: int) -> None:
    """The arguments from `first` on are the same for every request."""
    if any(each is not None and each.has_rows for each in arguments[first:]):
        raise MixedRowsError("takes its parameters from the request")


def _elementwise(_node: Node, arguments: Arguments) -> list[Shape]:
    return [broadcast(*(each.known() for each in arguments if each is not None))]


def _clip(_node: Node, arguments: Arguments) -> list[Shape]:
    _fixed(arguments, 1)
    return [given(arguments, 0).known()]


def _dropout(node: Node, arguments: Arguments) -> list[Shape]:
    training = arguments[2] if len(arguments) > 2 else None
    if training is not None and (training.value is None or bool(training.value.any())):
        raise MixedRowsError("is, or may be, in training mode")
    return [given(arguments, 0).known()]


def _gemm(node: Node, arguments: Arguments) -> list[Shape]:
    left, right = given(arguments, 0).known(), given(arguments, 1).known()
    if len(left) != 2 or len(right) != 2:
        raise MixedRowsError("takes matrices only")
    left = left[::-1] if node.integers.get("transA", 0) else left
    right = right[::-1] if node.integers.get("transB", 0) else right
    _contract(left[1], right[0])
    product: Shape = (left[0], right[1])
    added = arguments[2] if len(arguments) > 2 else None
    return [product if added is None else broadcast(product, added.known())]


def _matmul(_node: Node, arguments: Arguments) -> list[Shape]:
    left, right = given(arguments, 0).known(), given(arguments, 1).known()
    if not left or not right:
        raise MixedRowsError("takes no scalars")
    _contract(left[-1], right[-2] if len(right) > 1 else right[0])
    outer = broadcast(left[:-2], right[:-2]) if len(left) > 2 or len(right) > 2 else ()
    return [outer + left[-2:-1] + (right[-1:] if len(right) > 1 else ())]


def _contract(left: int | None, right: int | None) -> None:
    if left is None or right is None:
        raise MixedRowsError("sums over the batch axis")
    if left != right:
        raise MixedRowsError(f"joins axes of {left} and {right}")


def _conv(node: Node, arguments: Arguments) -> list[Shape]:
    _fixed(arguments, 1)
    image, weight = given(arguments, 0).known(), sizes(given(arguments, 1).known())
    if len(image) < 3 or len(weight) != len(image):
        raise MixedRowsError("takes an image and a kernel of the same number of axes")
    return [(image[0], weight[0], *_windows(node, sizes(image[2:]), weight[2:]))]


def _pool(node: Node, arguments: Arguments) -> list[Shape]:
    image, kernel = given(arguments, 0).known(), node.lists.get("kernel_shape", ())
    if len(image) < 3 or len(kernel) != len(image) - 2 or node.integers.get("ceil_mode", 0):
        raise MixedRowsError("has a kernel of another number of axes, or rounds up")
    return [(*image[:2], *_windows(node, sizes(image[2:]), kernel))]


def _windows(node: Node, image: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
    axes = len(image)
    strides, dilations = node.lists.get("strides", (1,) * axes), node.lists.get("dilations", (1,) * axes)
    pads, auto = node.lists.get("pads", (0,) * (2 * axes)), node.texts.get("auto_pad", "NOTSET")
    if not (len(strides) == len(dilations) == axes and len(pads) == 2 * axes and min(strides, default=1) > 0):
        raise MixedRowsError("has strides, pads or dilations of another number of axes")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return tuple(math.ceil(size / stride) for size, stride in zip(image, strides, strict=True))
    if auto not in ("NOTSET", "VALID"):
        raise MixedRowsError(f"pads in an unknown way, {auto}")
    padded = image if auto == "VALID" else tuple(image[i] + pads[i] + pads[i + axes] for i in range(axes))
    return tuple((padded[i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(axes))


def _global_pool(_node: Node, arguments: Arguments) -> list[Shape]:
    image = given(arguments, 0).known()
    if len(image) < 3:
        raise MixedRowsError("takes an image")
    return [(*image[:2], *(1 for _ in sizes(image[2:])))]


def _batch_normalization(node: Node, arguments: Arguments) -> list[Shape]:
    if node.integers.get("training_mode", 0):
        raise MixedRowsError("is in training mode: its statistics are those of the batch")
    _fixed(arguments, 1)
    image = given(arguments, 0).known()
    if len(image) < 2:
        raise MixedRowsError("takes rows of channels")
    return [image]


def _instance_normalization(_node: Node, arguments: Arguments) -> list[Shape]:
    _fixed(arguments, 1)
    image = given(arguments, 0).known()
    if len(image) < 3:
        raise MixedRowsError("takes an image")
    return [image]


def _layer_normalization(node: Node, arguments: Arguments) -> list[Shape]:
    _fixed(arguments, 1)
    shape = given(arguments, 0).known()
    axis = axis_in(node.integers.get("axis", -1), len(shape))
    for each in arguments[1:]:
        if each is not None and len(each.known()) > len(shape) - axis:
            raise MixedRowsError("scales more axes than it normalises")
    return [shape]


def _softmax(node: Node, arguments: Arguments) -> list[Shape]:
    shape = given(arguments, 0).known()
    axis_in(node.integers.get("axis", -1), len(shape))
    return [shape]


def _reduce(node: Node, arguments: Arguments) -> list[Shape]:
    shape = given(arguments, 0).known()
    given_axes = arguments[1] if len(arguments) > 1 else None
    axes = node.lists.get("axes", ()) if given_axes is None else given_axes.integers()
    if not axes:
        raise MixedRowsError("reduces every axis, the batch too")
    gone = {axis_in(axis, len(shape)) for axis in axes}
    return [_reduced(shape, gone, node.integers.get("keepdims", 1))]


def _arg(node: Node, arguments: Arguments) -> list[Shape]:
    shape = given(arguments, 0).known()
    return [_reduced(shape, {axis_in(node.integers.get("axis", 0), len(shape))}, node.integers.get("keepdims", 1))]


def _reduced(shape: Shape, axes: set[int], keep: int) -> Shape:
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes)


def _quantize(node: Node, arguments: Arguments) -> list[Shape]:
    _fixed(arguments, 1)
    shape, scale = given(arguments, 0).known(), given(arguments, 1).known()
    if len(scale) > 1 or node.integers.get("block_size", 0):
        raise MixedRowsError("has a scale per block")
    if len(scale) == 1 and scale != (1,) and given(arguments, 0).has_rows:
        axis_in(node.integers.get("axis", 1), len(shape))
    return [shape]


RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **LAYOUT_RULES,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Conv": _conv,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "MatMul": _matmul,
}
