"""Cases of convolutions, poolings and Resize: every stride, pad, dilation and group that a lowering decides on."""

from __future__ import annotations

from tests.vectors.autodiff.case import Case, mixed, node


def _convolutions() -> list[Case]:
    forms: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]] = {
        "3x3": ((2, 3, 5, 6), (4, 3, 3, 3), {}),
        "padded": ((2, 3, 5, 6), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
        "pads_wider_than_window": ((2, 2, 4, 4), (3, 2, 2, 2), {"pads": [2, 3, 2, 1]}),
        "asymmetric": ((2, 3, 5, 6), (4, 3, 3, 3), {"pads": [0, 1, 2, 0]}),
        "stride_2": ((2, 3, 7, 7), (4, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        "stride_2_unread": ((2, 3, 6, 8), (4, 3, 3, 3), {"strides": [2, 2]}),
        "stride_4_kernel_2_unread": ((2, 2, 9, 10), (3, 2, 2, 2), {"strides": [4, 4]}),
        "strides_differ": ((2, 2, 7, 9), (3, 2, 3, 2), {"strides": [1, 3], "pads": [1, 0, 1, 1]}),
        "dilated": ((2, 3, 7, 7), (4, 3, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        "dilated_strided": ((2, 2, 9, 9), (3, 2, 3, 3), {"dilations": [2, 1], "strides": [2, 3], "pads": [1, 1, 1, 1]}),
        "1x1": ((2, 3, 4, 5), (4, 3, 1, 1), {}),
        "1x1_stride_2": ((2, 3, 5, 5), (4, 3, 1, 1), {"strides": [2, 2]}),
        "1x1_padded": ((2, 3, 3, 3), (4, 3, 1, 1), {"pads": [1, 1, 1, 1]}),
        "groups_2": ((2, 4, 5, 5), (6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
        "groups_2_strided": ((2, 4, 6, 6), (6, 2, 3, 3), {"group": 2, "strides": [2, 2], "pads": [1, 0, 1, 0]}),
        "groups_1x1": ((2, 4, 3, 3), (4, 2, 1, 1), {"group": 2}),
        "depthwise": ((2, 4, 5, 5), (4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
        "depthwise_strided": ((2, 4, 7, 6), (4, 1, 3, 3), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        "depthwise_dilated": ((2, 4, 7, 7), (4, 1, 3, 3), {"group": 4, "dilations": [2, 2]}),
        "depthwise_multiplied": ((2, 3, 5, 5), (6, 1, 3, 3), {"group": 3}),
        "depthwise_large": ((1, 2, 9, 9), (2, 1, 8, 8), {"group": 2}),
        "same_upper": ((2, 2, 5, 6), (3, 2, 3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        "same_lower": ((2, 2, 5, 6), (3, 2, 2, 2), {"auto_pad": "SAME_LOWER"}),
        "valid": ((2, 2, 5, 6), (3, 2, 2, 2), {"auto_pad": "VALID"}),
        "1d": ((2, 3, 8), (4, 3, 3), {"pads": [1, 1]}),
        "1d_strided": ((2, 3, 9), (4, 3, 4), {"strides": [3], "pads": [2, 0]}),
        "3d": ((1, 2, 4, 4, 3), (3, 2, 2, 2, 2), {"pads": [0, 1, 0, 1, 0, 1]}),
        "3d_strided": ((1, 2, 5, 4, 4), (2, 2, 3, 2, 2), {"strides": [2, 2, 1]}),
    }
    cases = []
    for name, (x, weight, attributes) in forms.items():
        made = node("Conv", ["x", "w", "b"], ["y"], name="op", **attributes)
        cases.append(mixed(f"conv_{name}", [made], {"w": weight, "b": (weight[0],)}, x))
    bare = node("Conv", ["x", "w"], ["y"], name="op")
    cases.append(mixed("conv_without_bias", [bare], {"w": (2, 2, 2, 2)}, (2, 2, 3, 3)))
    return cases


def _transposed_convolutions() -> list[Case]:
    forms: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]] = {
        "plain": ((2, 3, 4, 3), (3, 2, 3, 3), {}),
        "strided": ((2, 3, 3, 4), (3, 2, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        "output_padding": (
            (2, 3, 3, 3),
            (3, 2, 3, 3),
            {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        ),
        "asymmetric": ((2, 3, 4, 4), (3, 2, 3, 2), {"strides": [2, 1], "pads": [1, 0, 0, 1]}),
        "dilated": ((2, 2, 3, 3), (2, 3, 2, 2), {"dilations": [2, 2]}),
        "groups": ((2, 4, 3, 4), (4, 3, 3, 3), {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        "depthwise": ((2, 3, 3, 3), (3, 1, 2, 2), {"group": 3, "strides": [2, 2]}),
        "1d": ((2, 3, 5), (3, 2, 4), {"strides": [2], "pads": [1, 1]}),
    }
    cases = []
    for name, (x, weight, attributes) in forms.items():
        made = node("ConvTranspose", ["x", "w", "b"], ["y"], name="op", **attributes)
        channels = weight[1] * int(str(attributes.get("group", 1)))
        cases.append(mixed(f"conv_transpose_{name}", [made], {"w": weight, "b": (channels,)}, x))
    return cases


def _poolings() -> list[Case]:
    forms: dict[str, tuple[tuple[int, ...], dict[str, object]]] = {
        "2x2": ((2, 2, 4, 6), {"kernel_shape": [2, 2], "strides": [2, 2]}),
        "2x2_odd": ((2, 2, 5, 7), {"kernel_shape": [2, 2], "strides": [2, 2]}),
        "3x3_overlapping": ((2, 2, 7, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        "3x3_stride_1": ((2, 2, 5, 4), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        "asymmetric": ((2, 2, 5, 6), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [0, 1, 1, 0]}),
        "ceil": ((2, 2, 6, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        "same_upper": ((2, 2, 5, 5), {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        "dilated": ((2, 2, 6, 6), {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        "1d": ((2, 2, 9), {"kernel_shape": [3], "strides": [2]}),
        "sparse": ((2, 2, 7, 8), {"kernel_shape": [2, 2], "strides": [3, 3]}),
    }
    cases = []
    for name, (x, attributes) in forms.items():
        weights = {"w": (x[1], *(1 for _ in x[3:]), x[-1])}
        scaled = node("Mul", ["x", "w"], ["h"])
        cases.append(mixed(f"max_pool_{name}", [scaled, node("MaxPool", ["h"], ["y"], **attributes)], weights, x))
        for included in (0, 1):
            made = node("AveragePool", ["h"], ["y"], count_include_pad=included, **attributes)
            cases.append(mixed(f"average_pool_{name}_{included}", [scaled, made], weights, x))
    for operator in ("GlobalAveragePool", "GlobalMaxPool"):
        for name, x in (("2d", (2, 3, 4, 3)), ("1d", (2, 3, 4))):
            scaled = node("Mul", ["x", "w"], ["h"])
            nodes = [scaled, node(operator, ["h"], ["y"])]
            cases.append(mixed(f"{operator.lower()}_{name}", nodes, {"w": (3, *(1 for _ in x[2:]))}, x))
    return cases


def _resizes() -> list[Case]:
    forms: dict[str, tuple[str, str, dict[str, object]]] = {
        "nearest": ("nearest", "asymmetric", {"nearest_mode": "floor"}),
        "linear": ("linear", "half_pixel", {}),
        "corners": ("linear", "align_corners", {}),
    }
    scaled = node("Mul", ["x", "w"], ["h"])
    cases = []
    for name, (mode, transformation, rest) in forms.items():
        options = {"mode": mode, "coordinate_transformation_mode": transformation, **rest}
        by_size = node("Resize", ["h", "", "", "s"], ["y"], **options)
        size = {"s": [2, 2, 6, 9]}
        cases.append(mixed(f"resize_{name}_by_size", [scaled, by_size], {"w": (2, 1, 3)}, (2, 2, 4, 3), fixed=size))
    return cases


WINDOW_CASES = (*_convolutions(), *_transposed_convolutions(), *_poolings(), *_resizes())
