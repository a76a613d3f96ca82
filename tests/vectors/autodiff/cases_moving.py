"""Cases of operators that move, copy, join, cut, pick and place values, and of Einsum."""

from __future__ import annotations

from tests.vectors.autodiff.case import Case, mixed, node

LOWEST = -(2**63)
W3, X3 = {"w": (4, 6)}, (2, 4, 6)
SCALED = node("Mul", ["x", "w"], ["h"])


def _shapes() -> list[Case]:
    cases = [
        mixed("transpose", [SCALED, node("Transpose", ["h"], ["y"], perm=[0, 2, 1])], W3, X3),
        mixed(
            "transpose_default",
            [SCALED, node("Transpose", ["h"], ["t"]), node("Transpose", ["t"], ["y"], perm=[2, 0, 1])],
            W3,
            X3,
        ),
        mixed("flatten", [SCALED, node("Flatten", ["h"], ["y"])], W3, X3),
        mixed("squeeze_all", [SCALED, node("Squeeze", ["h"], ["y"])], {"w": (1, 3)}, (2, 1, 3)),
        mixed(
            "squeeze_unsqueeze",
            [SCALED, node("Squeeze", ["h", "a"], ["s"]), node("Unsqueeze", ["s", "b"], ["y"])],
            {"w": (1, 3)},
            (2, 1, 3),
            fixed={"a": [1], "b": [1, -1]},
        ),
        mixed("expand", [SCALED, node("Expand", ["h", "s"], ["y"])], {"w": (1, 3)}, (2, 1, 3), fixed={"s": [2, 4, 1]}),
        mixed(
            "expand_leads",
            [node("Expand", ["w", "s"], ["e"]), node("Mul", ["e", "x"], ["y"])],
            {"w": (3,)},
            (2, 4, 3),
            fixed={"s": [2, 4, 3]},
        ),
        mixed("tile", [SCALED, node("Tile", ["h", "r"], ["y"])], {"w": (2, 3)}, (2, 2, 3), fixed={"r": [1, 3, 2]}),
        mixed("concat", [SCALED, node("Concat", ["h", "x", "h"], ["y"], axis=-1)], W3, X3),
        mixed(
            "concat_parameter",
            [node("Expand", ["w", "s"], ["e"]), node("Concat", ["e", "x"], ["y"], axis=1)],
            {"w": (1, 1, 6)},
            X3,
            fixed={"s": [2, 1, 6]},
        ),
        mixed(
            "depth_to_space", [SCALED, node("DepthToSpace", ["h"], ["y"], blocksize=2)], {"w": (8, 1, 3)}, (2, 8, 2, 3)
        ),
        mixed(
            "depth_to_space_crd",
            [SCALED, node("DepthToSpace", ["h"], ["y"], blocksize=2, mode="CRD")],
            {"w": (8, 1, 3)},
            (2, 8, 2, 3),
        ),
        mixed(
            "space_to_depth", [SCALED, node("SpaceToDepth", ["h"], ["y"], blocksize=2)], {"w": (2, 4, 6)}, (2, 2, 4, 6)
        ),
        mixed("trilu_upper", [SCALED, node("Trilu", ["h"], ["y"])], W3, X3),
        mixed("trilu_lower", [SCALED, node("Trilu", ["h", "k"], ["y"], upper=0)], W3, X3, fixed={"k": 1}),
    ]
    for exclusive, reverse in ((0, 0), (1, 0), (0, 1), (1, 1)):
        made = node("CumSum", ["h", "a"], ["y"], exclusive=exclusive, reverse=reverse)
        cases.append(mixed(f"cumsum_e{exclusive}_r{reverse}", [SCALED, made], W3, X3, fixed={"a": 1}))
    return cases


def _splits() -> list[Case]:
    even = [SCALED, node("Split", ["h"], ["a", "b"], axis=2, num_outputs=2), node("Mul", ["a", "b"], ["y"])]
    uneven = [SCALED, node("Split", ["h", "s"], ["a", "b"], axis=-1), node("Concat", ["b", "a", "b"], ["y"], axis=2)]
    unused = [SCALED, node("Split", ["h", "s"], ["a", "b", "c"], axis=1), node("Mul", ["b", "b"], ["y"])]
    return [
        mixed("split_even", even, W3, X3),
        mixed("split_uneven", uneven, W3, X3, fixed={"s": [4, 2]}),
        mixed("split_unused_parts", unused, W3, X3, fixed={"s": [1, 2, 1]}),
    ]


def _slices() -> list[Case]:
    forms = {
        "middle": ([1], [3], [1], [1]),
        "negative_ends": ([-3], [-1], [-1], [1]),
        "past_the_end": ([2], [1000], [2], [1]),
        "strided": ([0], [6], [2], [2]),
        "strided_inner": ([1], [5], [2], [3]),
        "reversed": ([-1], [LOWEST], [2], [-1]),
        "reversed_strided": ([4], [0], [2], [-2]),
        "two_axes": ([1, 0], [4, 6], [1, 2], [2, 4]),
    }
    cases = []
    for name, (starts, ends, axes, steps) in forms.items():
        fixed = {"s": starts, "e": ends, "a": axes, "t": steps}
        cases.append(
            mixed(f"slice_{name}", [SCALED, node("Slice", ["h", "s", "e", "a", "t"], ["y"])], W3, X3, fixed=fixed)
        )
    fixed = {"s": [0, 1], "e": [2, 3]}
    cases.append(mixed("slice_default_axes", [SCALED, node("Slice", ["h", "s", "e"], ["y"])], W3, X3, fixed=fixed))
    return cases


def _pads() -> list[Case]:
    cases = []
    for mode in ("constant", "reflect", "edge", "wrap"):
        made = node("Pad", ["h", "p"], ["y"], mode=mode)
        cases.append(mixed(f"pad_{mode}", [SCALED, made], W3, X3, fixed={"p": [0, 1, 2, 0, 2, 1]}))
    cut = node("Pad", ["h", "p", "v"], ["y"])
    cases.append(mixed("pad_negative", [SCALED, cut], W3, X3, fixed={"p": [0, -1, 2, 0, 1, -2], "v": 0.5}))
    some = node("Pad", ["h", "p", "", "a"], ["y"])
    cases.append(mixed("pad_some_axes", [SCALED, some], W3, X3, fixed={"p": [1, 2], "a": [-1]}))
    return cases


def _picks() -> list[Case]:
    table = [node("Gather", ["w", "i"], ["g"], axis=0), node("Mul", ["g", "x"], ["y"])]
    axis = [SCALED, node("Gather", ["h", "i"], ["y"], axis=2)]
    grid = [[1, 0, -1], [2, 2, 0]]
    elements = [SCALED, node("GatherElements", ["h", "i"], ["y"], axis=2)]
    places = [[[0, 0, 5], [1, -1, 1], [2, 2, 2], [3, 0, 3]], [[0, 1, 2], [3, 3, 3], [5, 4, 0], [1, 1, 0]]]
    nd = [SCALED, node("GatherND", ["h", "i"], ["y"])]
    update = [node("ScatterElements", ["x", "i", "u"], ["y"], axis=1)]
    add = [node("ScatterElements", ["x", "i", "u"], ["y"], axis=1, reduction="add")]
    rows = [node("ScatterND", ["x", "i", "u"], ["y"])]
    rows_add = [node("ScatterND", ["x", "i", "u"], ["y"], reduction="add")]
    return [
        mixed("gather_rows_repeated", table, {"w": (5, 3)}, (4, 3), fixed={"i": [1, 4, 1, -2]}),
        mixed("gather_grid_of_rows", table, {"w": (3, 3)}, (2, 3, 3), fixed={"i": grid}),
        mixed("gather_axis_2", axis, W3, X3, fixed={"i": grid}),
        mixed("gather_axis_1", [SCALED, node("Gather", ["h", "i"], ["y"], axis=1)], W3, X3, fixed={"i": [3, 0, 0]}),
        mixed("gather_scalar", [SCALED, node("Gather", ["h", "i"], ["y"], axis=1)], W3, X3, fixed={"i": 2}),
        mixed("gather_negative_scalar", axis, W3, X3, fixed={"i": -1}),
        mixed("gather_list_of_one", axis, W3, X3, fixed={"i": [3]}),
        mixed("gather_elements", elements, W3, X3, fixed={"i": places}),
        mixed("gather_nd", nd, W3, X3, fixed={"i": [[0, 1], [1, 3]]}),
        mixed("gather_nd_repeated", nd, W3, X3, fixed={"i": [[[0, 1], [0, 1]], [[1, 3], [0, 0]]]}),
        mixed("scatter_elements", update, {"u": (2, 2)}, (2, 4), fixed={"i": [[0, 3], [2, 1]]}),
        mixed("scatter_elements_add", add, {"u": (2, 2)}, (2, 4), fixed={"i": [[0, 0], [2, 1]]}),
        mixed("scatter_nd", rows, {"u": (2, 4)}, (3, 4), fixed={"i": [[0], [2]]}),
        mixed("scatter_nd_add", rows_add, {"u": (2, 4)}, (3, 4), fixed={"i": [[1], [1]]}),
    ]


def _einsums() -> list[Case]:
    forms = {
        "matmul": ("bi,ij->bj", (3, 5), (2, 3)),
        "batched": ("bij,bjk->bik", (2, 3, 5), (2, 4, 3)),
        "implicit": ("ab,bc", (3, 5), (2, 3)),
        "attention": ("bthd,bshd->bhts", (2, 5, 2, 3), (2, 4, 2, 3)),
        "summed_alone": ("bij,jk->bk", (3, 5), (2, 4, 3)),
        "outer": ("b,j->bj", (3,), (4,)),
        "transposed": ("bi,ji->bj", (5, 3), (2, 3)),
    }
    cases = []
    for name, (equation, weight, x) in forms.items():
        made = node("Einsum", ["x", "w"], ["y"], equation=equation)
        cases.append(mixed(f"einsum_{name}", [made], {"w": weight}, x))
    three = node("Einsum", ["x", "w", "v"], ["y"], equation="bi,ij,jk->bk")
    cases.append(mixed("einsum_three", [three], {"w": (3, 4), "v": (4, 2)}, (2, 3)))
    return cases


MOVING_CASES = (*_shapes(), *_splits(), *_slices(), *_pads(), *_picks(), *_einsums())
