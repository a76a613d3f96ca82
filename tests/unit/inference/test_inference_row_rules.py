"""Every operator on the list keeps rows apart, shown by running it; where it can mix them, the rule sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.fakes.clock import FakeClock
from tests.fakes.row_models import model_of

from holdfast.inference.onnx_graph import read_graph
from holdfast.inference.row_mixing import BUCKETS, check_graph, probe_rows
from holdfast.inference.row_rules import RULES
from holdfast.inference.row_shapes import MixedRowsError
from holdfast.inference.session import ModelSource, load_session

RNG = np.random.default_rng(7)
IMAGE = (3, 8, 8)


@dataclass(frozen=True)
class Case:
    """One use of an operator: its inputs after `x`, attributes, and the shape of a row of `x`."""

    operator: str
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, object] = field(default_factory=dict)
    row: tuple[int, ...] = (4,)
    inputs: tuple[str, ...] = ()
    element: int = TensorProto.FLOAT
    out: int = TensorProto.FLOAT
    outputs: tuple[str, ...] = ("y",)
    opset: int = 17

    def model(self) -> bytes:
        names = self.inputs or ("x", *self.constants)
        node = helper.make_node(self.operator, list(names), list(self.outputs), **self.attributes)
        return model_of([node], self.row, self.constants, element=self.element, out=self.out, opset=self.opset)


def f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64
UNARY = (
    *("Abs", "Acos", "Asin", "Atan", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish"),
    *("Identity", "LeakyRelu", "Log", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin"),
    *("Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu"),
)
KEEPS = [
    *(Case(name) for name in UNARY),
    *(Case(name, {"c": f(4)}) for name in ("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "PRelu", "Sub", "Sum")),
    *(Case(name, {"c": f(1, 4)}, out=BOOL) for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *(Case(name, {"c": np.array([True])}, element=BOOL, out=BOOL) for name in ("And", "Or", "Xor")),
    *(Case(name, {}, {"axes": [1]}, (4, 3)) for name in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp")),
    *(Case(name, {}, {"axes": [-1], "keepdims": 0}, (4, 3)) for name in ("ReduceMax", "ReduceMean", "ReduceMin")),
    *(Case(name, {}, {"axes": [1, 2]}, (4, 3)) for name in ("ReduceProd", "ReduceSumSquare")),
    Case("ReduceSum", {"axes": i(1)}),
    Case("ReduceMean", {"axes": i(-1)}, opset=18),
    *(Case(name) for name in ("Softmax", "LogSoftmax", "Hardmax")),
    Case("Softmax", {}, {"axis": 1}, (4, 3), opset=13),
    *(Case(name, {}, {"axis": 1, "keepdims": 0}, out=INT64) for name in ("ArgMax", "ArgMin")),
    Case("MaxPool", {}, {"kernel_shape": [2, 2], "strides": [2, 2]}, IMAGE),
    Case("AveragePool", {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, IMAGE),
    *(Case(name, {}, {}, IMAGE) for name in ("GlobalAveragePool", "GlobalMaxPool")),
    Case("Conv", {"w": f(5, 3, 3, 3), "b": f(5)}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}, IMAGE),
    Case("Conv", {"w": f(6, 1, 3, 3)}, {"group": 3, "auto_pad": "SAME_UPPER"}, IMAGE),
    Case("BatchNormalization", {"s": f(3), "b": f(3), "m": f(3), "v": np.ones(3, np.float32)}, {}, IMAGE),
    Case("InstanceNormalization", {"s": f(3), "b": f(3)}, {}, IMAGE),
    Case("LayerNormalization", {"s": f(4), "b": f(4)}),
    Case("Cast", {}, {"to": INT64}, out=INT64),
    Case("Clip", {"low": np.float32(-1), "high": np.float32(1)}),
    Case("Dropout"),
    Case("Gemm", {"w": f(4, 3), "b": f(3)}),
    Case("Gemm", {"w": f(3, 4), "b": f(1, 3)}, {"transB": 1, "alpha": 0.5}),
    Case("Gemm", {"w": f(100, 33)}, row=(100,)),
    Case("MatMul", {"w": f(4, 3)}),
    Case("MatMul", {"w": f(4, 3)}, row=(5, 4)),
    Case("MatMul", inputs=("x", "x"), row=(4, 4)),
    Case("MatMul", {"w": f(6, 4)}, row=(4, 3), inputs=("w", "x")),
    Case("QuantizeLinear", {"s": np.float32(0.1), "z": np.uint8(128)}, out=TensorProto.UINT8),
    Case("DequantizeLinear", {"s": f(3)}, {"axis": 1}, IMAGE, element=TensorProto.INT8),
    Case("Concat", inputs=("x", "x"), attributes={"axis": 1}),
    Case("Expand", {"s": i(1, 5, 4)}, row=(1, 4)),
    Case("Flatten", row=(2, 3)),
    Case("Gather", {"i": i(2, 0)}, {"axis": 1}),
    Case("Gather", {"t": f(2, 3)}, inputs=("t", "x"), element=INT64),
    Case("Pad", {"p": i(0, 1, 0, 2)}),
    Case("Reshape", {"s": i(-1, 2, 2)}),
    Case("Reshape", {"s": i(0, -1)}, row=(2, 3)),
    Case("Slice", {"a": i(1), "b": i(3), "axes": i(1)}),
    Case("Split", {}, {"axis": 1}, outputs=("y", "z")),
    Case("Squeeze", {"a": i(1)}, row=(1, 4)),
    Case("Transpose", {}, {"perm": [0, 2, 1]}, (2, 3)),
    Case("Unsqueeze", {"a": i(-1)}),
    Case("Where", {"c": np.array([True, False, True, False]), "e": f(4)}, inputs=("c", "x", "e")),
    Case("Not", element=BOOL, out=BOOL),
    *(Case(name, out=BOOL) for name in ("IsInf", "IsNaN")),
    Case("Gelu", opset=20),
    Case("Mish", opset=18),
]
MIXES = [
    Case("Softmax", {}, {"axis": 0}),
    Case("Softmax", {}, {"axis": -2}),
    Case("Softmax", row=()),
    Case("LogSoftmax", {}, {"axis": 0}),
    Case("Hardmax", {}, {"axis": 0}),
    Case("ArgMax", {}, {"keepdims": 0}, out=INT64),
    Case("ArgMin", {}, {"axis": -2}, out=INT64),
    *(
        Case(name, {}, {"axes": [0]})
        for name in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax")
    ),
    *(Case(name, {}, {"axes": [-2]}) for name in ("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare")),
    Case("ReduceMean"),
    Case("ReduceSum", {"a": i(0)}),
    Case("ReduceSum", {"a": i()}),
    Case("BatchNormalization", {n: f(3) for n in "sbmv"}, {"training_mode": 1}, IMAGE, outputs=("y", "m2", "v2")),
    Case("LayerNormalization", {"s": f(4)}, {"axis": 0}),
    Case("Reshape", {"s": i(2, -1)}),
    Case("Reshape", {"s": i(-1, 8)}),
    Case("Reshape", {"s": i(-1)}),
    Case("Reshape", {"s": i(4, -1)}, row=(2, 2)),
    Case("Flatten", {}, {"axis": 0}),
    Case("Flatten", {}, {"axis": 2}, (2, 2)),
    Case("Gather", {"i": i(0)}),
    Case("Gather", {"i": i(0, 1)}, {"axis": -2}),
    Case("Transpose"),
    Case("Transpose", {}, {"perm": [1, 0, 2]}, (3, 2)),
    Case("MatMul", {"w": f(2, 4)}, inputs=("w", "x")),
    Case("MatMul", inputs=("x", "x"), row=()),
    Case("MatMul", {"w": f(4, 3)}, {}, (4,), inputs=("x", "x")),
    Case("Gemm", {"w": f(4, 3)}, {"transA": 1}),
    Case("Gemm", inputs=("x", "x"), attributes={"transA": 1}),
    Case("Gemm", inputs=("x", "x"), attributes={"transB": 1}),
    Case("Add", {"c": f(3, 4)}),
    Case("Add", {"c": f(3, 1, 1)}),
    Case("Where", {"c": np.array([[True], [False]]), "e": f(4)}, inputs=("c", "x", "e")),
    Case("Concat", inputs=("x", "x"), attributes={"axis": 0}),
    Case("Slice", {"a": i(0), "b": i(1)}),
    Case("Slice", {"a": i(0), "b": i(1), "axes": i(0)}),
    Case("Split", {}, {"axis": 0}, outputs=("y", "z")),
    Case("Squeeze", row=(4,)),
    Case("Squeeze", {"a": i(0)}),
    Case("Unsqueeze", {"a": i(0)}),
    Case("Pad", {"p": i(1, 0, 0, 0)}),
    Case("Expand", {"s": i(3, 4)}),
    Case("DequantizeLinear", {"s": f(2)}, {"axis": 0}, element=TensorProto.INT8),
    Case("Conv", {"w": f(1, 3, 3, 3)}, inputs=("w", "x"), row=(3, 3, 3)),
    Case("Clip", {"m": np.float32(1)}, inputs=("m", "x")),
    Case("Shape", out=INT64),
    Case("Size", out=INT64),
    Case("DynamicQuantizeLinear", out=TensorProto.UINT8, outputs=("y", "scale", "zero")),
    Case("CumSum", {"a": np.array(0, np.int64)}),
    Case("NonZero", out=INT64),
    Case("RandomNormalLike"),
    Case("Dropout", {"r": np.float32(0.5), "t": np.array(True)}),
    Case("MaxPool", {}, {"kernel_shape": [2, 2]}, IMAGE, outputs=("y", "places")),
    Case("Softmax", opset=12),
]


def name_of(case: Case) -> str:
    return f"{case.operator}-{'x'.join(map(str, case.row)) or 'scalar'}"


@pytest.mark.parametrize("case", KEEPS, ids=name_of)
def test_rule_accepts_an_operator_whose_rows_stay_apart(case: Case) -> None:
    model = case.model()

    check_graph(read_graph(model))

    probe = probe_rows(load_session(ModelSource(model)), FakeClock())
    assert probe.mixing.is_allowed or "the bits of output" in probe.mixing.reason
    _assert_a_row_ignores_its_neighbours(case)


@pytest.mark.parametrize("case", MIXES, ids=name_of)
def test_rule_refuses_an_operator_that_may_mix_rows(case: Case) -> None:
    with pytest.raises(MixedRowsError):
        check_graph(read_graph(case.model()))


def test_every_operator_on_the_list_has_a_case() -> None:
    in_row_sizes = {"ConstantOfShape"}  # it takes a shape, not rows: test_inference_row_sizes.py

    assert {case.operator for case in KEEPS} | in_row_sizes == RULES.keys()


def test_shapes_found_are_those_that_onnxruntime_gives() -> None:
    """A rule that is wrong about a shape could let rows slip to another axis later."""
    from holdfast.inference import row_mixing

    for case in KEEPS:
        graph = read_graph(case.model())
        known = {name: row_mixing._fixed(constant) for name, constant in graph.constants.items()}
        known["x"] = row_mixing._rows("x", graph.inputs[0].dims)
        for node in graph.nodes:
            row_mixing._follow(node, known)
        session = load_session(ModelSource(case.model()))
        for rows in (2, 5):
            got = session.run({"x": _rows_for(case, rows)})
            found = known["y"].shape
            assert found is not None
            assert got["y"].shape == (rows, *found[1:]), case


def _assert_a_row_ignores_its_neighbours(case: Case) -> None:
    """Another oracle than the probe: one row stays, all others change, at every position of a batch."""
    session = load_session(ModelSource(case.model()))
    row = _rows_for(case, 1)
    for rows in BUCKETS[:6]:
        for position in range(rows):
            answers = []
            for _ in range(2):
                batch = _rows_for(case, rows)
                batch[position] = row[0]
                answers.append(session.run({"x": batch})["y"][position])
            assert np.array_equal(answers[0], answers[1], equal_nan=answers[0].dtype.kind == "f")


def _rows_for(case: Case, rows: int) -> np.ndarray:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(case.element)
    if dtype.kind == "f":
        return (RNG.standard_normal((rows, *case.row)) * 10.0 ** RNG.integers(-3, 4)).astype(dtype)
    return RNG.integers(0, 2, (rows, *case.row)).astype(dtype)
