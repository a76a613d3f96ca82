"""All cases of the gradient rules, and those of matrix products and plain arithmetic.

Shared by the script that makes the golden vectors (torch) and the tests (the product, onnx-ad).
"""

from __future__ import annotations

import numpy as np
from tests.fakes.models import he_mlp
from tests.vectors.autodiff.case import Case, node
from tests.vectors.autodiff.cases_elementwise import ELEMENTWISE_CASES
from tests.vectors.autodiff.cases_moving import MOVING_CASES
from tests.vectors.autodiff.cases_normalisation import NORMALISATION_CASES
from tests.vectors.autodiff.cases_recurrent import RECURRENT_CASES
from tests.vectors.autodiff.cases_selection import SELECTION_CASES
from tests.vectors.autodiff.cases_windows import WINDOW_CASES

MIX = node("MatMul", ["y", "mix"], ["logits"])


def _gemms() -> list[Case]:
    cases = []
    for trans_b in (0, 1):
        for alpha, beta in ((1.0, 1.0), (0.5, -2.0)):
            attributes = {"transB": trans_b, "alpha": alpha, "beta": beta}
            weight = (4, 3) if trans_b else (3, 4)
            made = node("Gemm", ["x", "w", "b"], ["logits"], name="op", **attributes)
            name = f"gemm_b{trans_b}_alpha{alpha}_beta{beta}"
            cases.append(Case(name, (made,), {"w": weight, "b": (4,)}, (5, 3), (0, 1, 2, 3, 1)))
    # transA: the first operand is made from a parameter, so that x keeps its batch axis
    for trans_b in (0, 1):
        weight = (4, 3) if trans_b else (3, 4)
        inner = node("Gemm", ["v", "w", "c"], ["mixed"], name="op", transA=1, transB=trans_b, alpha=1.5, beta=0.25)
        cases.append(
            Case(
                f"gemm_a1_b{trans_b}",
                (inner, node("MatMul", ["x", "mixed"], ["y"]), MIX),
                {"v": (3, 2), "w": weight, "c": (2, 1), "mix": (4, 4)},
                (5, 2),
                (0, 1, 2, 3, 1),
            )
        )
    bare = node("Gemm", ["x", "w"], ["logits"], name="op")
    cases.append(Case("gemm_without_c", (bare,), {"w": (3, 4)}, (2, 3), (0, 3)))
    for name, shape in (("scalar_like", (1,)), ("row", (1, 4)), ("column", (5, 1)), ("full", (5, 4))):
        made = node("Gemm", ["x", "w", "c"], ["y"], name="op", beta=3.0)
        weights = {"w": (3, 4), "c": shape, "mix": (4, 4)}
        cases.append(Case(f"gemm_c_{name}", (made, MIX), weights, (5, 3), (0, 1, 2, 3, 1)))
    return cases


def _matmuls() -> list[Case]:
    flat = node("Flatten", ["y"], ["logits"], axis=1)
    plain = node("MatMul", ["x", "w"], ["logits"], name="op")
    batched = node("MatMul", ["x", "w"], ["y"], name="op")
    left = node("MatMul", ["w", "x"], ["y"], name="op")
    return [
        Case("matmul_2d", (plain,), {"w": (3, 4)}, (5, 3), (0, 1, 2, 3, -1)),
        Case("matmul_3d_by_2d", (batched, flat), {"w": (3, 2)}, (4, 2, 3), (0, 1, 2, 3)),
        Case("matmul_4d_by_2d", (batched, flat), {"w": (3, 2)}, (2, 2, 2, 3), (0, 7)),
        Case("matmul_3d_by_3d", (batched, flat), {"w": (4, 3, 2)}, (4, 2, 3), (0, 1, 2, 3)),
        Case("matmul_3d_by_broadcast_3d", (batched, flat), {"w": (1, 3, 2)}, (4, 2, 3), (0, 1, 2, 3)),
        Case("matmul_3d_by_4d", (batched, flat), {"w": (3, 1, 3, 2)}, (3, 2, 3), (0, 1, 2)),
        Case("matmul_broadcast_on_the_left", (left, flat), {"w": (2, 3)}, (4, 3, 2), (0, 1, 2, 3)),
        Case("matmul_by_vector", (batched, flat), {"w": (3,)}, (4, 2, 3), (0, 1, 0, 1)),
        Case("matmul_vector_by_3d", (left, flat), {"w": (3,)}, (4, 3, 2), (0, 1, 0, 1)),
    ]


def _elementwise() -> list[Case]:
    cases = []
    for operator in ("Add", "Sub", "Mul"):
        for name, shape in (("same", (3, 4)), ("row", (4,)), ("column", (3, 1)), ("one", (1, 1))):
            made = node(operator, ["x", "w"], ["y"], name="op")
            weights = {"w": shape, "mix": (4, 4)}
            cases.append(Case(f"{operator.lower()}_{name}", (made, MIX), weights, (3, 4), (0, 1, 3)))
        swapped = node(operator, ["w", "x"], ["logits"], name="op")
        cases.append(Case(f"{operator.lower()}_swapped", (swapped,), {"w": (1, 4)}, (3, 4), (0, 1, 3)))
    stretched = (node("Add", ["x", "w"], ["y"], name="op"), node("Flatten", ["y"], ["logits"], axis=1))
    cases.append(Case("add_stretches_x", stretched, {"w": (2, 3, 4)}, (2, 1, 4), (0, 11)))
    return cases


def _others() -> list[Case]:
    relu = (node("Gemm", ["x", "w"], ["h"]), node("Relu", ["h"], ["logits"], name="op"))
    shaped = (
        node("Reshape", ["x", "shape"], ["r"], name="op"),
        node("Identity", ["r"], ["i"]),
        node("MatMul", ["i", "w"], ["y"]),
        node("Flatten", ["y"], ["logits"], axis=1),
    )
    fan_out = (
        node("Gemm", ["x", "w"], ["h"]),
        node("Relu", ["h"], ["a"]),
        node("Add", ["h", "a"], ["s"], name="op"),
        node("Mul", ["s", "h"], ["logits"]),
    )
    tied = (node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "w"], ["logits"], name="op"))
    same = (node("Gemm", ["x", "w"], ["h"]), node("Mul", ["h", "h"], ["logits"], name="op"))
    gemm = (node("Gemm", ["x", "w"], ["logits"]),)
    return [
        Case("relu_of_gemm", relu, {"w": (3, 4)}, (5, 3), (0, 1, 2, 3, 1)),
        Case("reshape_identity_flatten", shaped, {"w": (2, 2)}, (3, 8), (0, 1, 7), fixed={"shape": [-1, 4, 2]}),
        Case("fan_out_accumulates", fan_out, {"w": (3, 4)}, (5, 3), (0, 1, 2, 3, 1)),
        Case("one_value_read_twice_by_one_node", same, {"w": (3, 4)}, (2, 3), (0, 3)),
        Case("tied_parameter", tied, {"w": (3, 3)}, (4, 3), (0, 1, 2, 1), tied=("w",)),
        Case("ignore_index", gemm, {"w": (3, 4)}, (5, 3), (0, -1, 2, -1, -1)),
    ]


OPERATOR_CASES = (
    *_gemms(),
    *_matmuls(),
    *_elementwise(),
    *_others(),
    *ELEMENTWISE_CASES,
    *MOVING_CASES,
    *NORMALISATION_CASES,
    *RECURRENT_CASES,
    *WINDOW_CASES,
    *SELECTION_CASES,
)
MLP_SIZES = (12, 16, 16, 10)


def mlp() -> tuple[bytes, np.ndarray, np.ndarray]:
    """A whole network with its batch: model, x float32[10, 12], labels int64[10]."""
    rng = np.random.default_rng(11)
    return he_mlp(MLP_SIZES, seed=3), rng.standard_normal((10, 12)).astype(np.float32), rng.integers(0, 10, 10)
