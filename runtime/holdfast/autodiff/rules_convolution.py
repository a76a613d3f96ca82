"""Gradients of Conv and ConvTranspose, in any number of dimensions, with groups, strides, dilations and pads.

Source: Dumoulin and Visin 2016, chapter 4: the gradient by the input is the transposed convolution; the gradient by the
weight is the convolution of the input with dY, batch and channels exchanged, strides and dilations exchanged.

Lowerings, chosen per node by shape (measured on the stock runtime, one thread, batches of 4 to 32):
    dX   ConvTranspose; but where the kernel is 1x1, or fewer channels come out than go in, at stride 1: a convolution
         with the flipped weight, whose unrolled image is the smaller one then
    dW   depthwise: one product and sum per element of the kernel (a transposed convolution would have one channel per
         group); 1x1: a matrix product per sample; else a matrix product per element of the kernel, which takes a half
         to a fifth of the time of the convolution above; large kernels and groups: that convolution, cut to the kernel
"""

from __future__ import annotations

import math

from holdfast.autodiff.channels import channel_sum
from holdfast.autodiff.convolution_taps import weight_by_products, weight_by_taps
from holdfast.autodiff.rule import GradientRule, NodeView, one_output
from holdfast.autodiff.windows import Windows, padded_input, read_windows, tap, transposed
from holdfast.autodiff.writer import GraphWriter

# a product per element of the kernel pays off while there are few of them
MAX_TAPS = 49
FLIPPED, TRANSPOSED = "flipped", "transposed"
TAPS, PRODUCT, PRODUCTS, CONVOLUTION = "taps", "product", "products", "convolution"


def _convolution(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    weight = view.input_shape(1)
    windows = read_windows(view, view.input_shape(0)[2:], view.output_shape()[2:], weight[2:])
    dx = dw = None
    if view.wants(0):
        ways = (FLIPPED, TRANSPOSED) if _should_flip(windows, weight) else (TRANSPOSED, FLIPPED)
        flipped = _can_flip(windows) and view.way("dX", *ways) == FLIPPED
        lower = _input_by_flipping if flipped else _input_by_transposing
        dx = lower(out, view.inputs[1], dy, windows, weight)
    if view.wants(1):
        sizes = (view.input_shape(0)[0], weight[0], weight[1])
        dw = WEIGHT_GRADIENTS[view.way("dW", *_weight_ways(windows, sizes))](out, view.inputs[0], dy, windows, sizes)
    return [dx, dw, _bias(view, out, dy)]


def _can_flip(windows: Windows) -> bool:
    """Stride 1 and no window that lies in the padding alone: the way back would need negative pads."""
    wide = zip(windows.before, windows.after, windows.span, strict=True)
    inside = all(before < span and after < span for before, after, span in wide)
    return windows.is_plain and inside and not any(windows.unread)


def _should_flip(windows: Windows, weight: tuple[int, ...]) -> bool:
    return math.prod(windows.kernel) == 1 or weight[0] // windows.group < weight[1]


def _transposed_convolution(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """The forward of one is the backward of the other: dX = Conv(dY, W), and dW has X and dY exchanged."""
    weight = view.input_shape(1)
    batch, channels, *count = view.input_shape(0)
    windows = read_transposed(view, view.output_shape()[2:], tuple(count), weight[2:])
    dx = dw = None
    if view.wants(0):
        padded = padded_input(out, dy, windows)
        options = {"strides": windows.strides, "dilations": windows.dilations, "kernel_shape": windows.kernel}
        dx = out.node("Conv", [padded, view.inputs[1]], group=windows.group, **options)
    if view.wants(1):
        sizes = (batch, channels, weight[1])
        dw = WEIGHT_GRADIENTS[view.way("dW", *_weight_ways(windows, sizes))](out, dy, view.inputs[0], windows, sizes)
    return [dx, dw, _bias(view, out, dy)]


def read_transposed(view: NodeView, size: tuple[int, ...], count: tuple[int, ...], kernel: tuple[int, ...]) -> Windows:
    """The windows of the convolution that a ConvTranspose undoes; its pads may come from its `output_shape`."""
    if view.has_attribute("output_shape") or view.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise view.refusal("pads that follow from output_shape or auto_pad have no rule; export it with explicit pads")
    return read_windows(view, size, count, kernel)


def _bias(view: NodeView, out: GraphWriter, dy: str) -> str | None:
    if not view.wants(2):
        return None
    return channel_sum(out, dy, view.output_shape())


def _input_by_transposing(out: GraphWriter, weight: str, dy: str, windows: Windows, shape: tuple[int, ...]) -> str:
    return transposed(out, dy, weight, windows, group=windows.group)


def _input_by_flipping(out: GraphWriter, weight: str, dy: str, windows: Windows, shape: tuple[int, ...]) -> str:
    """Conv(dY, W flipped in space, its channels exchanged per group), padded to the full reach of the windows."""
    made, per_group, *kernel = shape
    group, rank = windows.group, len(kernel)
    if math.prod(kernel) > 1:
        ends, axes = [-1] * rank, range(2, 2 + rank)
        lowest = [-(2**63)] * rank
        operands = [out.integers(*each) for each in (ends, lowest, axes, [-1] * rank)]
        weight = out.node("Slice", [weight, *operands])
    if group == 1:
        weight = out.node("Transpose", [weight], perm=[1, 0, *range(2, 2 + rank)])
    elif group != made or per_group != 1:
        split = out.node("Reshape", [weight, out.integers(group, made // group, per_group, *kernel)])
        swapped = out.node("Transpose", [split], perm=[0, 2, 1, *range(3, 3 + rank)])
        weight = out.node("Reshape", [swapped, out.integers(group * per_group, made // group, *kernel)])
    reach = zip(windows.span, windows.before, windows.after, strict=True)
    pads = [(span - 1 - before, span - 1 - after) for span, before, after in reach]
    return out.node(
        "Conv",
        [dy, weight],
        kernel_shape=tuple(kernel),
        dilations=windows.dilations,
        pads=(*(front for front, _ in pads), *(behind for _, behind in pads)),
        group=group,
    )


def _weight_ways(windows: Windows, sizes: tuple[int, int, int]) -> tuple[str, ...]:
    """The ways that fit, the best by rule first."""
    _, made, per_group = sizes
    kernel = math.prod(windows.kernel)
    if per_group == 1 and made == windows.group and made > 1 and kernel <= MAX_TAPS:
        return (TAPS, CONVOLUTION)
    if windows.group > 1 or kernel > MAX_TAPS:
        return (CONVOLUTION,)
    if kernel > 1:
        return (PRODUCTS, CONVOLUTION) if per_group > 1 else (CONVOLUTION, PRODUCTS)
    padded = any(windows.before) or any(windows.after)
    return (CONVOLUTION, PRODUCTS) if padded else (PRODUCT, PRODUCTS, CONVOLUTION)


def _weight_by_product(out: GraphWriter, x: str, dy: str, windows: Windows, sizes: tuple[int, int, int]) -> str:
    """1x1: dW = sum over the batch of dY X^T, rows being channels and columns positions."""
    batch, made, channels = sizes
    if not windows.is_plain or any(windows.unread):
        x = tap(out, x, windows, (0,) * len(windows.size))
    columns = out.node("Transpose", [out.node("Reshape", [x, out.integers(batch, channels, -1)])], perm=[0, 2, 1])
    rows = out.node("Reshape", [dy, out.integers(batch, made, -1)])
    total = out.node("ReduceSum", [out.node("MatMul", [rows, columns]), out.integers(0)], keepdims=0)
    return out.node("Reshape", [total, out.integers(made, channels, *windows.kernel)])


def _weight_by_convolution(out: GraphWriter, x: str, dy: str, windows: Windows, sizes: tuple[int, int, int]) -> str:
    """X as [C/g, g batch, ...] convolved with dY as its kernel [made, batch, ...], stride and dilation exchanged."""
    batch, _, per_group = sizes
    group, rank = windows.group, len(windows.size)
    space = tuple(range(2, 2 + rank))
    if group == 1:
        image = out.node("Transpose", [x], perm=[1, 0, *space])
    else:
        split = out.node("Reshape", [x, out.integers(batch, group, per_group, *windows.size)])
        moved = out.node("Transpose", [split], perm=[2, 1, 0, *(axis + 1 for axis in space)])
        image = out.node("Reshape", [moved, out.integers(per_group, group * batch, *windows.size)])
    kernel = out.node("Transpose", [dy], perm=[1, 0, *space])
    found = out.node(
        "Conv",
        [image, kernel],
        kernel_shape=windows.count,
        strides=windows.dilations,
        dilations=windows.strides,
        pads=(*windows.before, *windows.after),
        group=group,
    )
    # what no window read makes the result larger than the kernel
    if any(unread >= dilation for unread, dilation in zip(windows.unread, windows.dilations, strict=True)):
        operands = ([0] * rank, windows.kernel, space)
        found = out.node("Slice", [found, *(out.integers(*each) for each in operands)])
    return out.node("Transpose", [found], perm=[1, 0, *space])


# Each takes (writer, x, dy, windows, sizes) and gives d(convolution)/dW, float32[made, per_group, *kernel].
#     x: float32[batch, group * per_group, *size].  dy: float32[batch, made, *count].  sizes: batch, made, per_group.
WEIGHT_GRADIENTS = {
    TAPS: weight_by_taps,
    PRODUCT: _weight_by_product,
    PRODUCTS: weight_by_products,
    CONVOLUTION: _weight_by_convolution,
}

RULES = (
    GradientRule("Conv", "dX = conv_transpose(dY, W), dW = conv(X^T, dY^T), dB = sum(dY)", one_output(_convolution)),
    GradientRule(
        "ConvTranspose", "dX = conv(dY, W), dW = conv(dY^T, X^T), dB = sum(dY)", one_output(_transposed_convolution)
    ),
)
