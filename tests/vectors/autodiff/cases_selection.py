"""Cases of operators that choose or sample places by values, and of the discrete Fourier transform."""

from __future__ import annotations

from tests.vectors.autodiff.case import Case, mixed, node

SCALED = node("Mul", ["x", "w"], ["h"])
W3, X3 = {"w": (4, 6)}, (2, 4, 6)


def _choices() -> list[Case]:
    cases = []
    for name, attributes in (("last", {}), ("axis_1", {"axis": 1}), ("smallest", {"axis": -2, "largest": 0})):
        made = node("TopK", ["h", "k"], ["y", "places"], **attributes)
        cases.append(mixed(f"top_k_{name}", [SCALED, made], W3, X3, fixed={"k": [3]}))
    one = node("TopK", ["h", "k"], ["y", "places"], sorted=0)
    cases.append(mixed("top_k_of_one", [SCALED, one], W3, X3, fixed={"k": [1]}))
    gate = [
        node("MatMul", ["x", "g"], ["s"]),
        node("TopK", ["s", "k"], ["best", "places"]),
        node("GatherElements", ["x", "places"], ["picked"], axis=1),
        node("Mul", ["best", "picked"], ["y"]),
    ]
    cases.append(mixed("top_k_as_a_gate", gate, {"g": (5, 5)}, (3, 5), fixed={"k": [2]}))
    turned = [SCALED, node("ReverseSequence", ["h", "n"], ["r"], batch_axis=0, time_axis=1)]
    turned.append(node("Mul", ["r", "v"], ["y"]))
    cases.append(mixed("reverse_sequence", turned, {**W3, "v": (4, 6)}, X3, fixed={"n": [3, 4]}))
    return cases


def _transforms() -> list[Case]:
    pair, real = {"w": (3, 5, 2)}, {"w": (3, 5, 1)}
    forms = {
        "complex": (pair, (2, 3, 5, 2), {}, None),
        "real": (real, (2, 3, 5, 1), {}, None),
        "axis_1": (pair, (2, 3, 5, 2), {}, 1),
        "inverse": (pair, (2, 3, 5, 2), {"inverse": 1}, 1),
        "onesided": (real, (2, 3, 5, 1), {"onesided": 1}, 2),
    }
    cases = []
    for name, (weights, x, attributes, axis) in forms.items():
        inputs = ["h", ""] if axis is None else ["h", "", "a"]
        made = node("DFT", inputs[:1] if axis is None else inputs, ["y"], **attributes)
        cases.append(mixed(f"dft_{name}", [SCALED, made], weights, x, fixed={} if axis is None else {"a": axis}))
    return cases


def _samples() -> list[Case]:
    """Grids of standard normal numbers, so that a third of the places lie outside, moved for each row."""
    moved = [
        node("Mul", ["x", "w"], ["h"]),
        node("ReduceMean", ["x", "image"], ["shift"], keepdims=1),
        node("Add", ["g", "shift"], ["grid"]),
    ]
    flat, deep = (
        ({"w": (2, 4, 5), "g": (1, 3, 4, 2)}, (2, 2, 4, 5)),
        ({"w": (2, 3, 2, 4), "g": (1, 2, 3, 2, 3)}, (2, 2, 3, 2, 4)),
    )
    forms = {
        "zeros": (flat, {}),
        "zeros_aligned": (flat, {"align_corners": 1}),
        "border": (flat, {"padding_mode": "border"}),
        "border_aligned": (flat, {"padding_mode": "border", "align_corners": 1}),
        "reflection": (flat, {"padding_mode": "reflection"}),
        "reflection_aligned": (flat, {"padding_mode": "reflection", "align_corners": 1}),
        "nearest": (flat, {"mode": "nearest"}),
        "nearest_reflection": (flat, {"mode": "nearest", "padding_mode": "reflection"}),
        "volume": (deep, {}),
        "volume_border": (deep, {"padding_mode": "border", "align_corners": 1}),
    }
    return [
        mixed(
            f"grid_sample_{name}",
            [*moved, node("GridSample", ["h", "grid"], ["y"], **attributes)],
            weights,
            x,
            fixed={"image": list(range(1, len(x)))},
        )
        for name, ((weights, x), attributes) in forms.items()
    ]


SELECTION_CASES = (*_choices(), *_samples(), *_transforms())
