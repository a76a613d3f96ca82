"""ONNX operators in torch float64, as their specification says; only for making vectors. Nothing here is differentiated
by hand: torch autograd does that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from tests.vectors.autodiff.torch_selection import SELECTION_OPERATORS
from torch.nn import functional

Tensor = torch.Tensor
Attributes = Mapping[str, Any]
Args = list[Any]  # a tensor, or None for an optional input that is not there


def _windows(x: Tensor, kernel: list[int], a: Attributes) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Strides, dilations and pads of a convolution or pooling, automatic pads resolved."""
    rank = len(kernel)
    strides, dilations = list(a.get("strides", [1] * rank)), list(a.get("dilations", [1] * rank))
    mode = a.get("auto_pad", b"NOTSET").decode()
    if mode in ("NOTSET", "VALID"):
        pads = list(a.get("pads", [0] * 2 * rank)) if mode == "NOTSET" else [0] * 2 * rank
        return strides, dilations, list(zip(pads[:rank], pads[rank:], strict=True))
    found = []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        half = total // 2
        found.append((half, total - half) if mode == "SAME_UPPER" else (total - half, half))
    return strides, dilations, found


def _padded(x: Tensor, pads: list[tuple[int, int]], value: float) -> Tensor:
    return functional.pad(x, [each for pair in reversed(pads) for each in pair], value=value)


def conv(args: Args, a: Attributes) -> Tensor:
    x, w = args[:2]
    strides, dilations, pads = _windows(x, list(w.shape[2:]), a)
    run = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[x.dim() - 2]
    bias = args[2] if len(args) > 2 else None
    return run(_padded(x, pads, 0.0), w, bias, stride=strides, dilation=dilations, groups=a.get("group", 1))


def conv_transpose(args: Args, a: Attributes) -> Tensor:
    """The full transposed convolution, cut by the pads and with output_padding zeros at the end."""
    x, w = args[:2]
    strides, dilations, pads = _windows(x, list(w.shape[2:]), a)
    run = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d}[x.dim() - 2]
    extra = a.get("output_padding", [0] * len(pads))
    full = run(x, w, None, stride=strides, dilation=dilations, groups=a.get("group", 1))
    cut = [(-before, e - after) for (before, after), e in zip(pads, extra, strict=True)]
    y = _padded(full, cut, 0.0)
    return y + args[2].reshape(1, -1, *[1] * len(pads)) if len(args) > 2 else y


def _taps(x: Tensor, a: Attributes, fill: float) -> tuple[Tensor, list[tuple[int, int]], list[tuple[int, int]]]:
    """[kernel elements, batch, channels, *count] of what each window sees; and the pads as given and as rounded up."""
    kernel = list(a["kernel_shape"])
    strides, dilations, pads = _windows(x, kernel, a)
    wide, counts = [], []
    for (before, after), size, k, s, d in zip(pads, x.shape[2:], kernel, strides, dilations, strict=True):
        room = size + before + after - (d * (k - 1) + 1)
        count = (-(-room // s) if a.get("ceil_mode", 0) else room // s) + 1
        if (count - 1) * s >= size + before:  # a window may not begin in the padding at the end
            count -= 1
        counts.append(count)
        wide.append((before, max((count - 1) * s + d * (k - 1) + 1 - size - before, 0)))
    padded = _padded(x, wide, fill)
    found = []
    for offset in product(*(range(k) for k in kernel)):
        cut: list[slice] = [slice(None), slice(None)]
        for o, d, s, n in zip(offset, dilations, strides, counts, strict=True):
            cut.append(slice(o * d, o * d + (n - 1) * s + 1, s))
        found.append(padded[tuple(cut)])
    return torch.stack(found), pads, wide


def max_pool(args: Args, a: Attributes) -> Tensor:
    return _taps(args[0], a, -torch.inf)[0].max(dim=0).values


def average_pool(args: Args, a: Attributes) -> Tensor:
    seen, pads, _ = _taps(args[0], a, 0.0)
    inside = torch.ones_like(args[0])
    if a.get("count_include_pad", 0):  # the given padding counts, what rounding up adds doesn't
        strides, dilations, _ = _windows(args[0], list(a["kernel_shape"]), a)
        whole = _padded(inside, pads, 1.0)
        rank = len(pads)
        room = {**a, "pads": [0] * 2 * rank, "auto_pad": b"NOTSET", "strides": strides, "dilations": dilations}
        counts = _taps(whole, room, 0.0)[0].sum(dim=0)
        if counts.shape[2:] != seen.shape[3:]:
            counts = counts[tuple(slice(0, n) for n in seen.shape[1:])]
    else:
        counts = _taps(inside, a, 0.0)[0].sum(dim=0)
    return seen.sum(dim=0) / counts


def _normal(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    mean = x.mean(dim=axes, keepdim=True)
    return (x - mean) / (((x - mean) ** 2).mean(dim=axes, keepdim=True) + epsilon).sqrt()


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(1, -1, *[1] * (x.dim() - 2))


def batch_norm(args: Args, a: Attributes) -> Tensor:
    x, s, b, mean, var = args
    normal = (x - _per_channel(mean, x)) / (_per_channel(var, x) + a.get("epsilon", 1e-5)).sqrt()
    return normal * _per_channel(s, x) + _per_channel(b, x)


def layer_norm(args: Args, a: Attributes) -> Tensor:
    axes = list(range(a.get("axis", -1) % args[0].dim(), args[0].dim()))
    y = _normal(args[0], axes, a.get("epsilon", 1e-5)) * args[1]
    return y + args[2] if len(args) > 2 else y


def rms_norm(args: Args, a: Attributes) -> Tensor:
    x = args[0]
    axes = list(range(a.get("axis", -1) % x.dim(), x.dim()))
    return x / ((x**2).mean(dim=axes, keepdim=True) + a.get("epsilon", 1e-5)).sqrt() * args[1]


def group_norm(args: Args, a: Attributes) -> Tensor:
    x = args[0]
    grouped = x.reshape(x.shape[0], a.get("num_groups", x.shape[1]), -1)
    normal = _normal(grouped, [2], a.get("epsilon", 1e-5)).reshape(x.shape)
    return normal * _per_channel(args[1], x) + _per_channel(args[2], x)


def lrn(args: Args, a: Attributes) -> Tensor:
    x, size = args[0], a["size"]
    squares = functional.pad((x**2).transpose(1, -1), [(size - 1) // 2, size // 2]).transpose(1, -1)
    total = torch.stack([squares[:, i : i + x.shape[1]] for i in range(size)]).sum(dim=0)
    return x / (a.get("bias", 1.0) + a.get("alpha", 1e-4) / size * total) ** a.get("beta", 0.75)


def _lstm_step(x: Tensor, h: Tensor, c: Tensor, w: Tensor, r: Tensor, b: Tensor, a: Attributes) -> tuple[Tensor, ...]:
    half = b.shape[0] // 2
    i, o, f, g = (x @ w.T + h @ r.T + b[:half] + b[half:]).chunk(4, dim=1)
    p_i, p_o, p_f = a["peepholes"].chunk(3) if a["peepholes"] is not None else (0, 0, 0)
    c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
    return torch.sigmoid(o + p_o * c) * torch.tanh(c), c


def _gru_step(x: Tensor, h: Tensor, c: Tensor, w: Tensor, r: Tensor, b: Tensor, a: Attributes) -> tuple[Tensor, ...]:
    (wz, wr, wn), (rz, rr, rn) = w.chunk(3), r.chunk(3)
    bwz, bwr, bwn, brz, brr, brn = b.chunk(6)
    z = torch.sigmoid(x @ wz.T + h @ rz.T + bwz + brz)
    reset = torch.sigmoid(x @ wr.T + h @ rr.T + bwr + brr)
    if a.get("linear_before_reset", 0):
        n = torch.tanh(x @ wn.T + bwn + reset * (h @ rn.T + brn))
    else:
        n = torch.tanh(x @ wn.T + bwn + (reset * h) @ rn.T + brn)
    return (1 - z) * n + z * h, c


def _rnn_step(x: Tensor, h: Tensor, c: Tensor, w: Tensor, r: Tensor, b: Tensor, a: Attributes) -> tuple[Tensor, ...]:
    half = b.shape[0] // 2
    raw = x @ w.T + h @ r.T + b[:half] + b[half:]
    return (torch.relu(raw) if a.get("activations") == [b"Relu"] else torch.tanh(raw)), c


def recurrent(step: Callable[..., tuple[Tensor, ...]]) -> Callable[[Args, Attributes], list[Tensor]]:
    def run(args: Args, a: Attributes) -> list[Tensor]:
        x, w, r, b, lengths, h0, c0, p = (*args, *[None] * (8 - len(args)))[:8]
        signs = {"forward": [1], "reverse": [-1], "bidirectional": [1, -1]}[a.get("direction", b"forward").decode()]
        sequences, hs, cs = [], [], []
        for d, sign in enumerate(signs):
            zero = x.new_zeros(x.shape[1], r.shape[-1])
            h = zero if h0 is None else h0[d]
            c = zero if c0 is None else c0[d]
            bias = x.new_zeros(2 * w.shape[1]) if b is None else b[d]
            made: dict[int, Tensor] = {}
            own = {**a, "peepholes": None if p is None else p[d]}
            for t in range(x.shape[0])[::sign]:
                next_h, next_c = step(x[t], h, c, w[d], r[d], bias, own)
                lives = torch.ones(x.shape[1], 1, dtype=torch.bool) if lengths is None else (lengths > t)[:, None]
                h, c = torch.where(lives, next_h, h), torch.where(lives, next_c, c)
                made[t] = torch.where(lives, h, 0.0)
            sequences.append(torch.stack([made[t] for t in range(x.shape[0])]))
            hs.append(h)
            cs.append(c)
        return [torch.stack(sequences, dim=1), torch.stack(hs), torch.stack(cs)]

    return run


def slice_(args: Args, a: Attributes) -> Tensor:
    x, starts, ends = args[0], args[1].tolist(), args[2].tolist()
    axes = args[3].tolist() if len(args) > 3 else list(range(len(starts)))
    steps = args[4].tolist() if len(args) > 4 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        start, end = (each + size if each < 0 else each for each in (start, end))
        low, high = (0, size) if step > 0 else (-1, size - 1)
        places = range(min(max(start, 0), high), min(max(end, low), size), step)
        x = x.index_select(axis % x.dim(), torch.tensor(list(places)))
    return x


def pad(args: Args, a: Attributes) -> Tensor:
    x, pads = args[0], args[1].tolist()
    axes = args[3].tolist() if len(args) > 3 else list(range(x.dim()))
    mode = a.get("mode", b"constant").decode()
    value = args[2].item() if len(args) > 2 and args[2] is not None else 0.0
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if mode == "constant":
            last = x.movedim(axis, -1)
            x = functional.pad(last, [before, after], value=value).movedim(-1, axis)
        else:
            where = np.pad(np.arange(x.shape[axis]), (before, after), mode=mode)
            x = x.index_select(axis % x.dim(), torch.tensor(where))
    return x


def gather(args: Args, a: Attributes) -> Tensor:
    x, index = args
    axis = a.get("axis", 0) % x.dim()
    flat = x.index_select(axis, index.reshape(-1) % x.shape[axis])
    return flat.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def gather_elements(args: Args, a: Attributes) -> Tensor:
    axis = a.get("axis", 0)
    return torch.gather(args[0], axis, args[1] % args[0].shape[axis])


def gather_nd(args: Args, a: Attributes) -> Tensor:
    x, index = args
    return x[tuple(index.movedim(-1, 0))]


def scatter_elements(args: Args, a: Attributes) -> Tensor:
    x, index, update = args
    if a.get("reduction", b"none") == b"add":
        return x.scatter_add(a.get("axis", 0), index, update)
    return x.scatter(a.get("axis", 0), index, update)


def scatter_nd(args: Args, a: Attributes) -> Tensor:
    x, index, update = args
    return x.index_put(tuple(index.movedim(-1, 0)), update, accumulate=a.get("reduction", b"none") == b"add")


def cumsum(args: Args, a: Attributes) -> Tensor:
    x, axis = args[0], int(args[1])
    if a.get("reverse", 0):
        x = x.flip(axis)
    y = x.cumsum(axis) - (x if a.get("exclusive", 0) else 0.0)
    return y.flip(axis) if a.get("reverse", 0) else y


def resize(args: Args, a: Attributes) -> Tensor:
    size = args[3].tolist()[2:]
    if a["mode"] == b"nearest":
        return functional.interpolate(args[0], size=size, mode="nearest")
    aligned = a["coordinate_transformation_mode"] == b"align_corners"
    return functional.interpolate(args[0], size=size, mode="bilinear", align_corners=aligned)


def depth_to_space(args: Args, a: Attributes) -> Tensor:
    x, b = args[0], a["blocksize"]
    n, c, h, w = x.shape
    if a.get("mode", b"DCR") == b"CRD":
        return functional.pixel_shuffle(x, b)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(args: Args, a: Attributes) -> Tensor:
    x, b = args[0], a["blocksize"]
    n, c, h, w = x.shape
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def cross_entropy(args: Args, a: Attributes) -> Tensor:
    weight = args[2] if len(args) > 2 else None
    # the operator's weights are parameters here without a gradient of their own
    weight = None if weight is None else weight.detach()
    ignored = a.get("ignore_index", -(10**6))
    return functional.cross_entropy(
        args[0], args[1], weight=weight, ignore_index=ignored, reduction=a.get("reduction", b"mean").decode()
    )


def reduce_(run: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[[Args, Attributes], Tensor]:
    def found(args: Args, a: Attributes) -> Tensor:
        axes = args[1].tolist() if len(args) > 1 else []
        if not axes and a.get("noop_with_empty_axes", 0):
            return args[0]
        return run(args[0], axes or list(range(args[0].dim())), bool(a.get("keepdims", 1)))

    return found


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(dim=axis, keepdim=keep)
    return x


def split(args: Args, a: Attributes, outputs: int) -> list[Tensor]:
    axis = a.get("axis", 0)
    sizes = args[1].tolist() if len(args) > 1 else args[0].shape[axis] // outputs
    return list(args[0].split(sizes, dim=axis))


def gemm(args: Args, a: Attributes) -> Tensor:
    left = args[0].T if a.get("transA") else args[0]
    right = args[1].T if a.get("transB") else args[1]
    y = a.get("alpha", 1.0) * (left @ right)
    return y + a.get("beta", 1.0) * args[2] if len(args) > 2 else y


def squeeze(args: Args, a: Attributes) -> Tensor:
    return args[0].squeeze(args[1].tolist()) if len(args) > 1 else args[0].squeeze()


def unsqueeze(args: Args, a: Attributes) -> Tensor:
    axes = sorted(axis % (args[0].dim() + len(args[1])) for axis in args[1].tolist())
    x = args[0]
    for axis in axes:
        x = x.unsqueeze(axis)
    return x


def clip(args: Args, a: Attributes) -> Tensor:
    low, high = (*args[1:], None, None)[:2]
    if low is None and high is None:
        return args[0]
    return args[0].clamp(min=None if low is None else low.item(), max=None if high is None else high.item())


def _fold(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Args, Attributes], Tensor]:
    def found(args: Args, a: Attributes) -> Tensor:
        y = args[0]
        for each in args[1:]:
            y = run(y, each)
        return y

    return found


def _simple(run: Callable[[Tensor], Tensor]) -> Callable[[Args, Attributes], Tensor]:
    return lambda args, a: run(args[0])


def celu(args: Args, a: Attributes) -> Tensor:
    return functional.celu(args[0], a.get("alpha", 1.0))


def selu(args: Args, a: Attributes) -> Tensor:
    x, alpha, gamma = args[0], a.get("alpha", 1.6732632423543772), a.get("gamma", 1.0507009873554805)
    return gamma * torch.where(x > 0, x, alpha * (x.exp() - 1))


OPERATORS: Mapping[str, Callable[[Args, Attributes], Any]] = {
    "Gemm": gemm,
    "MatMul": lambda args, a: torch.matmul(*args),
    "Einsum": lambda args, a: torch.einsum(a["equation"].decode(), *args),
    "Add": lambda args, a: args[0] + args[1],
    "Sub": lambda args, a: args[0] - args[1],
    "Mul": lambda args, a: args[0] * args[1],
    "Div": lambda args, a: args[0] / args[1],
    "Pow": lambda args, a: args[0] ** (args[1] if args[1].dim() or args[1].requires_grad else args[1].item()),
    "Neg": _simple(torch.neg),
    "Sum": _fold(torch.add),
    "Mean": lambda args, a: _fold(torch.add)(args, a) / len(args),
    "Min": _fold(torch.minimum),
    "Max": _fold(torch.maximum),
    "Where": lambda args, a: torch.where(*args),
    "Greater": lambda args, a: args[0] > args[1],
    "Clip": clip,
    **{
        name: _simple(getattr(torch, name.lower()))
        for name in ("Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Sin", "Cos", "Tan", "Sinh", "Cosh", "Atan")
    },
    **{name: _simple(getattr(torch, name.lower())) for name in ("Sign", "Floor", "Ceil", "Round", "Sigmoid", "Tanh")},
    **{name: _simple(getattr(torch, name.lower())) for name in ("Asin", "Acos", "Asinh", "Acosh", "Atanh")},
    **SELECTION_OPERATORS,
    "Relu": _simple(torch.relu),
    "LeakyRelu": lambda args, a: functional.leaky_relu(args[0], a.get("alpha", 0.01)),
    "PRelu": lambda args, a: torch.where(args[0] > 0, args[0], args[0] * args[1]),
    "Elu": lambda args, a: functional.elu(args[0], a.get("alpha", 1.0)),
    "Selu": selu,
    "Celu": celu,
    "Softplus": _simple(functional.softplus),
    "Softsign": _simple(functional.softsign),
    "HardSigmoid": lambda args, a: (a.get("alpha", 0.2) * args[0] + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": _simple(functional.hardswish),
    "Swish": lambda args, a: args[0] * torch.sigmoid(a.get("alpha", 1.0) * args[0]),
    "Mish": _simple(functional.mish),
    "Gelu": lambda args, a: functional.gelu(args[0], approximate=a.get("approximate", b"none").decode()),
    "Cast": _simple(lambda x: x),
    "Softmax": lambda args, a: torch.softmax(args[0], a.get("axis", -1)),
    "LogSoftmax": lambda args, a: torch.log_softmax(args[0], a.get("axis", -1)),
    "SoftmaxCrossEntropyLoss": cross_entropy,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": _simple(lambda x: x.mean(dim=list(range(2, x.dim())), keepdim=True)),
    "GlobalMaxPool": _simple(lambda x: x.amax(dim=list(range(2, x.dim())), keepdim=True)),
    "Resize": resize,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "InstanceNormalization": lambda args, a: group_norm(args, {**a, "num_groups": args[0].shape[1]}),
    "GroupNormalization": group_norm,
    "LRN": lrn,
    "Dropout": _simple(lambda x: x),
    "LSTM": recurrent(_lstm_step),
    "GRU": recurrent(_gru_step),
    "RNN": recurrent(_rnn_step),
    "ReduceSum": reduce_(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep)),
    "ReduceMean": reduce_(lambda x, axes, keep: x.mean(dim=axes, keepdim=keep)),
    "ReduceMax": reduce_(lambda x, axes, keep: x.amax(dim=axes, keepdim=keep)),
    "ReduceMin": reduce_(lambda x, axes, keep: x.amin(dim=axes, keepdim=keep)),
    "ReduceL1": reduce_(lambda x, axes, keep: x.abs().sum(dim=axes, keepdim=keep)),
    "ReduceL2": reduce_(lambda x, axes, keep: (x**2).sum(dim=axes, keepdim=keep).sqrt()),
    "ReduceSumSquare": reduce_(lambda x, axes, keep: (x**2).sum(dim=axes, keepdim=keep)),
    "ReduceLogSum": reduce_(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep).log()),
    "ReduceLogSumExp": reduce_(lambda x, axes, keep: torch.logsumexp(x, dim=axes, keepdim=keep)),
    "ReduceProd": reduce_(_product),
    "Identity": _simple(lambda x: x),
    "Reshape": lambda args, a: args[0].reshape(args[1].tolist()),
    "Flatten": lambda args, a: args[0].flatten(1),
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": lambda args, a: args[0].permute(a.get("perm", list(range(args[0].dim()))[::-1])),
    "Expand": lambda args, a: args[0] * torch.ones(args[1].tolist(), dtype=torch.float64),
    "Tile": lambda args, a: args[0].tile(args[1].tolist()),
    "Concat": lambda args, a: torch.cat(args, dim=a["axis"]),
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Trilu": lambda args, a: (torch.triu if a.get("upper", 1) else torch.tril)(
        args[0], int(args[1]) if len(args) > 1 else 0
    ),
    "CumSum": cumsum,
    "Slice": slice_,
    "Pad": pad,
    "Gather": gather,
    "GatherElements": lambda args, a: torch.gather(
        args[0], a.get("axis", 0), args[1] % args[0].shape[a.get("axis", 0)]
    ),
    "GatherND": gather_nd,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
}


def run_node(node: onnx.NodeProto, args: Args) -> list[Tensor]:
    """The outputs of a node."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Split":
        return split(args, attributes, len(node.output))
    found = OPERATORS[node.op_type](args, attributes)
    return found if isinstance(found, list) else [found]
