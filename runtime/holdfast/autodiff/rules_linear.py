"""Gradients of the matrix products: Gemm and MatMul.

Source: for Y = A B, dA = dY B^T and dB = A^T dY (Giles 2008, "Collected matrix derivative results", section 2.2.2).
"""

from __future__ import annotations

import math

from holdfast.autodiff.rule import GradientRule, NodeView, one_output, reduce_to_shape, reshaped
from holdfast.autodiff.writer import GraphWriter

# where exchanging the operands of a layer pays: half the time for 10 rows of 3136 x 512, nothing below 200 x 784
MAX_ROWS, MIN_WEIGHT = 64, 131_072
MANY_ROWS = 256  # from where on swapping a narrow operand first pays: 5 to 15 % of a product of 320 x 128 and 320 x 512

Sized = tuple[str, tuple[int, ...]]  # a matrix and its shape


def _gemm_forward(view: NodeView, out: GraphWriter) -> tuple[str, ...]:
    """Y = (W X^T + C)^T for a large weight W and few rows X: the runtime arranges its second operand anew in each run.

    Serving has W arranged beforehand; in training it is another one at every step.
    """
    rows, weight = view.input_shape(0)[0], view.input_shape(1)
    ways = ("turned", "plain") if rows <= MAX_ROWS and math.prod(weight) >= MIN_WEIGHT else ("plain", "turned")
    plain = view.real("alpha", 1.0) == 1.0 and view.real("beta", 1.0) == 1.0
    as_layer = not view.integer("transA", 0) and view.integer("transB", 0) and plain
    with_bias = not view.has(2) or view.input_shape(2) == weight[:1]
    if not (as_layer and with_bias and view.wants(1)) or view.way("Y", *ways) == "plain":
        out.copy([view.node])
        return ()
    bias = [out.node("Unsqueeze", [view.inputs[2], out.integers(1)])] if view.has(2) else []
    turned = out.node("Gemm", [view.inputs[1], view.inputs[0], *bias], transB=1)
    out.node_as("Transpose", [turned], [view.outputs[0]], perm=[1, 0])
    return ()


def _gemm(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Y = alpha op(A) op(B) + beta C, op = transpose where asked; C broadcasts to Y."""
    a, b = view.inputs[0], view.inputs[1]
    trans_a, trans_b = view.integer("transA", 0), view.integer("transB", 0)
    alpha, beta = view.real("alpha", 1.0), view.real("beta", 1.0)
    da = db = dc = None
    if view.wants(0):
        if trans_a:
            da = out.node("Gemm", [b, dy], transA=trans_b, transB=1, alpha=alpha)
        else:
            da = out.node("Gemm", [dy, b], transB=1 - trans_b, alpha=alpha)
    if view.wants(1):
        if trans_b:
            db = _of_rows(view, out, (dy, view.output_shape()), (a, view.input_shape(0)), turned=trans_a, alpha=alpha)
        elif trans_a:
            db = out.node("Gemm", [a, dy], alpha=alpha)
        else:
            db = _of_rows(view, out, (a, view.input_shape(0)), (dy, view.output_shape()), turned=0, alpha=alpha)
    if view.wants(2):
        dc = reduce_to_shape(out, dy, view.output_shape(), view.input_shape(2))
        if beta != 1.0:
            dc = out.node("Mul", [dc, out.scalar(beta)])
    return [da, db, dc]


def _of_rows(view: NodeView, out: GraphWriter, first: Sized, second: Sized, *, turned: int, alpha: float) -> str:
    """alpha first^T op(second), a sum over rows; op transposes if the second is `turned`.

    Over many rows, a first operand that is the narrower one is swapped before the product, which would swap it anew for
    every part of the second. The axis in front keeps the runtime from taking the swap back into the product.
    """
    (a, shape), (b, other) = first, second
    narrow = shape[0] >= MANY_ROWS and shape[1] <= other[1 - turned]
    if not narrow or view.way("dW", "swapped", "plain") == "plain":
        return out.node("Gemm", [a, b], transA=1, transB=turned, alpha=alpha)
    image = out.node("Reshape", [a, out.integers(1, *shape)])
    swapped = out.node("Transpose", [image], perm=[0, 2, 1])
    return out.node("Gemm", [out.node("Reshape", [swapped, out.integers(*shape[::-1])]), b], transB=turned, alpha=alpha)


def _matmul(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """numpy.matmul: rank-1 operands are promoted to matrices, leading axes broadcast."""
    shape_a, shape_b = view.input_shape(0), view.input_shape(1)
    if len(shape_b) == 2 and len(shape_a) >= 2:
        return _product_with_one_matrix(view, out, dy)
    if shape_a[:-2] == shape_b[:-2] and len(shape_a) > 2:
        return _products_in_a_row(view, out, dy)
    full_a = (1, *shape_a) if len(shape_a) == 1 else shape_a
    full_b = (*shape_b, 1) if len(shape_b) == 1 else shape_b
    full_y = _batch_shape(full_a, full_b) + (full_a[-2], full_b[-1])
    dy = reshaped(out, dy, view.output_shape(), full_y)
    da = db = None
    if view.wants(0):
        b = _swapped(out, reshaped(out, view.inputs[1], shape_b, full_b), len(full_b))
        da = out.node("MatMul", [dy, b])
        da = reduce_to_shape(out, da, full_y[:-1] + full_a[-1:], full_a)
        da = reshaped(out, da, full_a, shape_a)
    if view.wants(1):
        a = _swapped(out, reshaped(out, view.inputs[0], shape_a, full_a), len(full_a))
        db = out.node("MatMul", [a, dy])
        db = reduce_to_shape(out, db, full_y[:-2] + full_b[-2:], full_b)
        db = reshaped(out, db, full_b, shape_b)
    return [da, db]


def _product_with_one_matrix(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """A of rank >= 2 times one matrix: all leading axes fold into rows, so each gradient is one Gemm."""
    shape_a, (inner, columns) = view.input_shape(0), view.input_shape(1)
    rows = math.prod(shape_a[:-1])
    flat_dy = reshaped(out, dy, view.output_shape(), (rows, columns))
    da = db = None
    if view.wants(0):
        da = out.node("Gemm", [flat_dy, view.inputs[1]], transB=1)
        da = reshaped(out, da, (rows, inner), shape_a)
    if view.wants(1):
        flat_a = reshaped(out, view.inputs[0], shape_a, (rows, inner))
        db = out.node("Gemm", [flat_a, flat_dy], transA=1)
    return [da, db]


def _products_in_a_row(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """As many products as there are pairs of matrices: their leading axes as one.

    So that the runtime lets a product read the swapped matrices; it would join the swap to a transpose before it.
    """
    shape_a, shape_b = view.input_shape(0), view.input_shape(1)
    count = math.prod(shape_a[:-2])
    flat_a, flat_b = (count, *shape_a[-2:]), (count, *shape_b[-2:])
    dy = reshaped(out, dy, view.output_shape(), (count, shape_a[-2], shape_b[-1]))
    da = db = None
    if view.wants(0):
        b = _swapped(out, reshaped(out, view.inputs[1], shape_b, flat_b), 3)
        da = reshaped(out, out.node("MatMul", [dy, b]), flat_a, shape_a)
    if view.wants(1):
        a = _swapped(out, reshaped(out, view.inputs[0], shape_a, flat_a), 3)
        db = reshaped(out, out.node("MatMul", [a, dy]), flat_b, shape_b)
    return [da, db]


def _batch_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(a), len(b)) - 2
    lead_a = (1,) * (rank - len(a) + 2) + a[:-2]
    lead_b = (1,) * (rank - len(b) + 2) + b[:-2]
    return tuple(max(x, y) for x, y in zip(lead_a, lead_b, strict=True))


def _swapped(out: GraphWriter, value: str, rank: int) -> str:
    return out.node("Transpose", [value], perm=[*range(rank - 2), rank - 1, rank - 2])


RULES = (
    GradientRule(
        "Gemm",
        "dA = alpha dY op(B)^T, dB = alpha op(A)^T dY, dC = beta sum(dY)",
        one_output(_gemm),
        forward=_gemm_forward,
    ),
    GradientRule("MatMul", "dA = sum(dY B^T), dB = sum(A^T dY) over broadcast axes", one_output(_matmul)),
)
