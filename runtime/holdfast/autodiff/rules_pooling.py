"""Gradients of the poolings: MaxPool, AveragePool, and over the whole image GlobalMaxPool and GlobalAveragePool.

Source: a maximum passes its gradient to one element that attained it (LeCun et al. 2012; the first, as PyTorch does);
an average spreads it evenly over the elements it counted.
"""

from __future__ import annotations

import math

import numpy as np

from holdfast.autodiff.rule import GradientRule, NodeView, as_float, one_output, zeros
from holdfast.autodiff.windows import Windows, counted, read_windows, transposed
from holdfast.autodiff.writer import GraphWriter


def _windows(view: NodeView) -> Windows:
    return read_windows(view, view.input_shape(0)[2:], view.output_shape()[2:], view.integers("kernel_shape"))


def _max_forward(view: NodeView, out: GraphWriter) -> tuple[str, ...]:
    """The same node, asked where the maxima are: int64, flat over the whole tensor. That takes it ten times as long.

    Windows of two by two need no answer: see `_max_of_halves`.
    """
    if _halves(view) and view.way("dX", "halves", "places") == "halves":
        out.copy([view.node])
        return ()
    indices = out.fresh("MaxPool")
    names = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
    out.node_as("MaxPool", view.inputs, [view.outputs[0], indices], storage_order=0)
    out.nodes[-1].attribute.extend(each for each in view.node.attribute if each.name in names)
    return (indices,)


def _max(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """dY added to a flat tensor of zeros; where no element is in two windows, written instead of added."""
    if not view.saved:
        return [_max_of_halves(view, out, dy)]
    shape, flat = view.input_shape(0), out.integers(-1)
    target = zeros(out, (math.prod(shape),))
    places, values = out.node("Reshape", [view.saved[0], flat]), out.node("Reshape", [dy, flat])
    reduction = "add" if _windows(view).overlap else "none"
    made = out.node("ScatterElements", [target, places, values], axis=0, reduction=reduction)
    return [out.node("Reshape", [made, out.integers(*shape)])]


def _halves(view: NodeView) -> bool:
    """Whether every axis is halved: windows of 2 at stride 2 that cover everything."""
    windows = _windows(view)
    twos = all(each == 2 for each in (*windows.kernel, *windows.strides))
    plain = all(each == 1 for each in windows.dilations) and not any((*windows.before, *windows.after, *windows.unread))
    return twos and plain and len(view.outputs) == 1


def _max_of_halves(view: NodeView, out: GraphWriter, dy: str) -> str:
    """Axis by axis, the first axis first: of each pair the first takes dY if it is at least the second.

    Of several equal maxima one takes all, the one in the first column, and in that the first: a subgradient as well.
    The halves are cut anew: kept from the forward pass instead of a MaxPool, they lie out of the processor's cache by
    then, and the way back takes a tenth longer.
    """
    shape = view.input_shape(0)
    rows, value, masks = math.prod(shape[:2]), view.inputs[0], []
    for axis, size in enumerate(shape[2:], start=2):
        rows, inner = rows * (size // 2), math.prod(shape[axis + 1 :])
        pairs = out.node("Reshape", [value, out.integers(rows, 2, inner)])
        first, second = out.nodes_out("Split", [pairs], 2, axis=1, num_outputs=2)
        masks.append((as_float(out, out.node("GreaterOrEqual", [first, second])), (rows, 1, inner)))
        value = out.node("Max", [first, second])
    for mask, form in reversed(masks):
        flow = out.node("Reshape", [dy, out.integers(*form)])
        to_first = out.node("Mul", [flow, mask])
        dy = out.node("Concat", [to_first, out.node("Sub", [flow, to_first])], axis=1)
    return out.node("Reshape", [dy, out.integers(*shape)])


def _average(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Each result, divided by how many elements it counted, is spread over its window. Channels count as batch."""
    windows = _windows(view)
    rank = len(windows.size)
    pads = ((0,) * rank, (0,) * rank)
    if view.integer("count_include_pad", 0):
        given = view.integers("pads", [0] * 2 * rank)
        automatic = view.text("auto_pad", "NOTSET") != "NOTSET"
        pads = (windows.before, windows.after if automatic else given[rank:])
    sizes = counted(windows, pads)
    share = out.node("Mul", [dy, out.constant(np.reciprocal(sizes))])
    batch, channels, *_ = view.input_shape(0)
    folded = out.node("Reshape", [share, out.integers(batch * channels, 1, *windows.count)])
    ones = out.constant(np.ones((1, 1, *windows.kernel), np.float32))
    spread = transposed(out, folded, ones, windows, group=1)
    return [out.node("Reshape", [spread, out.integers(*view.input_shape(0))])]


def _global_average(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    shape = view.input_shape(0)
    share = out.node("Mul", [dy, out.scalar(1.0 / math.prod(shape[2:]))])
    return [out.node("Expand", [share, out.integers(*shape)])]


def _global_max(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    mask = as_float(out, out.node("Equal", [view.inputs[0], view.outputs[0]]))
    axes = out.integers(*range(2, len(view.input_shape(0))))
    return [out.node("Mul", [mask, out.node("Div", [dy, out.node("ReduceSum", [mask, axes], keepdims=1)])])]


RULES = (
    GradientRule("MaxPool", "dX = dY at the places of the maxima, else 0", one_output(_max), forward=_max_forward),
    GradientRule("AveragePool", "dX = dY / count, spread over each window", one_output(_average)),
    GradientRule("GlobalAveragePool", "dX = dY / n, spread", one_output(_global_average)),
    GradientRule("GlobalMaxPool", "dX = dY [X = Y] / number of equals", one_output(_global_max)),
)
