"""Shapes that exporters compute from the batch keep rows apart when they only say where rows lie; abuse is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper
from tests.fakes.clock import FakeClock
from tests.fakes.row_models import model_of

from holdfast.errors import HoldfastError
from holdfast.inference import row_mixing
from holdfast.inference.onnx_graph import read_graph
from holdfast.inference.row_mixing import check_graph, probe_rows
from holdfast.inference.row_shapes import ROWS, MixedRowsError
from holdfast.inference.session import ModelSource, load_session

N = helper.make_node
RNG = np.random.default_rng(3)
ROW = (3, 4)
HEAD = RNG.standard_normal((12, 2)).astype(np.float32)
NUMBERS = {
    **{"zero": 0, "one": 1, "minus": -1, "axis": [0], "axis1": [1], "two": [2], "three": [3], "rest": [-1]},
    **{"twelve": [12], "six": [6], "pick0": [0], "pick1": [1], "places": [0, 1], "starts": [1], "ends": [2**31]},
}
CONSTANTS = {
    **{name: np.array(value, np.int64) for name, value in NUMBERS.items()},
    "head": HEAD,
    "token": RNG.standard_normal((1, 1, 4)).astype(np.float32),
    "table": RNG.standard_normal((64, 3, 4)).astype(np.float32),
}
# x.size(0), as an exporter writes it
SIZE = [N("Shape", ["x"], ["shape"]), N("Gather", ["shape", "zero"], ["n"]), N("Unsqueeze", ["n", "axis"], ["rows"])]
FLAT_HEAD = [N("Reshape", ["z", "flat"], ["f"]), N("MatMul", ["f", "head"], ["y"])]
FLATTEN = [N("Concat", ["rows", "twelve"], ["flat"], axis=0), *FLAT_HEAD]


def filled(name: str, count: str, value: int) -> NodeProto:
    return N("ConstantOfShape", [count], [name], value=helper.make_tensor("v", onnx.TensorProto.INT64, [1], [value]))


def floats(name: str, shape: str) -> NodeProto:
    return N("ConstantOfShape", [shape], [name], value=helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [0.5]))


# token.expand(x.size(0), -1, -1): every size that is -1 becomes 1
STRETCH = [
    N("Concat", ["rows", "rest", "rest"], ["wide"], axis=0),
    filled("ones", "three", 1),
    N("Mul", ["ones", "minus"], ["unknown"]),
    N("Equal", ["wide", "unknown"], ["is_unknown"]),
    N("Where", ["is_unknown", "ones", "wide"], ["target"]),
]
KEEPS = {
    "view_with_the_size_and_the_rest": [
        *SIZE,
        N("Concat", ["rows", "rest"], ["flat"], axis=0),
        N("Reshape", ["x", "flat"], ["f"]),
        N("MatMul", ["f", "head"], ["y"]),
    ],
    "view_with_every_size_told": [*SIZE, N("Identity", ["x"], ["z"]), *FLATTEN],
    "shape_cut_by_its_attributes": [
        N("Shape", ["x"], ["rows"], start=0, end=1),
        N("Identity", ["x"], ["z"]),
        *FLATTEN,
    ],
    "shape_cut_by_slices": [
        N("Shape", ["x"], ["shape"]),
        N("Slice", ["shape", "axis", "pick1"], ["rows"]),
        N("Slice", ["shape", "starts", "ends"], ["others"]),
        N("Concat", ["rows", "others"], ["same"], axis=0),
        N("Reshape", ["x", "same"], ["z"]),
        *FLATTEN,
    ],
    "view_into_heads_and_back": [
        *SIZE,
        N("Gather", ["shape", "one"], ["t"]),
        N("Unsqueeze", ["t", "axis"], ["ts"]),
        N("Concat", ["rows", "ts", "two", "two"], ["split"], axis=0),
        N("Reshape", ["x", "split"], ["h"]),
        N("Transpose", ["h"], ["z"], perm=[0, 2, 1, 3]),
        *FLATTEN,
    ],
    "class_token_stretched_to_the_batch": [
        *SIZE,
        *STRETCH,
        N("Expand", ["token", "target"], ["first"]),
        N("Add", ["x", "first"], ["z"]),
        *FLATTEN,
    ],
    "zeros_for_every_row": [
        *SIZE,
        N("Concat", ["rows", "three", "pick1"], ["made"], axis=0),
        floats("state", "made"),
        N("Add", ["x", "state"], ["z"]),
        *FLATTEN,
    ],
    "size_told_to_be_a_list": [
        *SIZE[:2],
        N("Reshape", ["n", "rest"], ["rows"]),
        N("Identity", ["x"], ["z"]),
        *FLATTEN,
    ],
    "size_cast_and_squeezed": [
        *SIZE,
        N("Squeeze", ["rows", "axis"], ["again"]),
        N("Cast", ["again"], ["sure"], to=onnx.TensorProto.INT64),
        N("Unsqueeze", ["sure", "axis"], ["r"]),
        N("Concat", ["r", "twelve"], ["flat"], axis=0),
        N("Identity", ["x"], ["z"]),
        *FLAT_HEAD,
    ],
}
ADD_SIZE = [N("Cast", ["n"], ["float"], to=onnx.TensorProto.FLOAT), N("Mul", ["x", "float"], ["z"]), *FLATTEN]
MIXES = {
    "rows_and_columns_exchanged": [
        *SIZE,
        N("Concat", ["rest", "rows"], ["swap"], axis=0),
        N("Reshape", ["x", "swap"], ["z"]),
        N("Concat", ["rows", "twelve"], ["flat"], axis=0),
        *FLAT_HEAD,
    ],
    "rows_behind_an_axis_of_one": [
        *SIZE,
        N("Concat", ["pick1", "rows", "twelve"], ["swap"], axis=0),
        N("Reshape", ["x", "swap"], ["s"]),
        N("Softmax", ["s"], ["z"], axis=1),
        *FLATTEN,
    ],
    "two_rows_made_of_one": [
        *SIZE,
        N("Concat", ["rows", "two", "six", "pick1"], ["four"], axis=0),
        N("Reshape", ["x", "four"], ["s"]),
        N("Transpose", ["s"], ["z"], perm=[1, 0, 2, 3]),
        *FLATTEN,
    ],
    "rows_twice": [*SIZE, N("Concat", ["rows", "rows"], ["flat"], axis=0), N("Reshape", ["x", "flat"], ["y"])],
    "answers_that_tell_the_number_of_rows": [*SIZE, *ADD_SIZE],
    "the_last_row_of_the_batch": [
        *SIZE,
        N("Sub", ["n", "one"], ["last"]),
        N("Gather", ["x", "last"], ["row"], axis=0),
        N("Add", ["x", "row"], ["z"]),
        *FLATTEN,
    ],
    "a_row_of_a_table_by_place": [
        *SIZE,
        N("Slice", ["table", "axis", "rows"], ["mine"]),
        N("Add", ["x", "mine"], ["z"]),
        *FLATTEN,
    ],
    "a_table_reshaped_to_the_batch": [
        N("Shape", ["x"], ["shape"]),
        N("Reshape", ["table", "shape"], ["mine"]),
        N("Add", ["x", "mine"], ["z"]),
        N("Gather", ["shape", "pick0"], ["rows"]),
        *FLATTEN,
    ],
    "a_choice_by_the_number_of_rows": [
        *SIZE,
        N("Equal", ["rows", "two"], ["is_two"]),
        N("Where", ["is_two", "six", "twelve"], ["width"]),
        N("Concat", ["rest", "width"], ["flat"], axis=0),
        N("Identity", ["x"], ["z"]),
        *FLAT_HEAD,
    ],
    "half_of_the_rows": [
        *SIZE,
        N("Mul", ["rows", "two"], ["double"]),
        N("Concat", ["double", "six"], ["flat"], axis=0),
        N("Reshape", ["x", "flat"], ["y"]),
    ],
    "every_element_a_row": [
        N("Size", ["x"], ["all"]),
        N("Unsqueeze", ["all", "axis"], ["flat"]),
        N("Reshape", ["x", "flat"], ["y"]),
    ],
    "places_taken_from_the_size": [
        *SIZE,
        N("Gather", ["x", "rows"], ["z"], axis=1),
        N("Squeeze", ["z", "axis1"], ["y"]),
    ],
    "zeros_with_rows_behind": [
        *SIZE,
        N("Concat", ["pick1", "rows", "pick1"], ["made"], axis=0),
        floats("state", "made"),
        N("Add", ["x", "state"], ["z"]),
        *FLATTEN,
    ],
    "a_token_stretched_along_another_axis": [
        *SIZE,
        N("Concat", ["pick1", "rows", "pick1"], ["made"], axis=0),
        N("Expand", ["token", "made"], ["s"]),
        N("ReduceSum", ["s", "axis1"], ["sum"], keepdims=1),
        N("Add", ["x", "sum"], ["z"]),
        *FLATTEN,
    ],
    "the_shape_itself_as_the_answer": [N("Shape", ["x"], ["y"])],
}


def model(nodes: list[NodeProto]) -> bytes:
    read = {name for node in nodes for name in node.input}
    out = onnx.TensorProto.INT64 if nodes[-1].op_type == "Shape" else onnx.TensorProto.FLOAT
    return model_of(nodes, ROW, {name: value for name, value in CONSTANTS.items() if name in read}, out=out)


@pytest.mark.parametrize("name", KEEPS)
def test_computed_shapes_that_keep_rows_apart_are_accepted(name: str) -> None:
    given = model(KEEPS[name])

    check_graph(read_graph(given))

    session = load_session(ModelSource(given))
    probe = probe_rows(session, FakeClock())
    assert probe.mixing.is_allowed or "the bits of output" in probe.mixing.reason
    assert_a_row_ignores_its_neighbours(given)


def assert_a_row_ignores_its_neighbours(given: bytes) -> None:
    """Another oracle than the probe: one row stays, the others change, and so does their number."""
    session = load_session(ModelSource(given))
    mine = RNG.standard_normal((1, *ROW)).astype(np.float32)
    alone = session.run({"x": mine})["y"]
    for rows in (2, 3, 5):
        for place in range(rows):
            batch = RNG.standard_normal((rows, *ROW)).astype(np.float32) * 100
            batch[place] = mine
            np.testing.assert_allclose(session.run({"x": batch})["y"][place], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MIXES)
def test_a_computed_shape_that_may_mix_rows_is_refused(name: str) -> None:
    with pytest.raises(MixedRowsError):
        check_graph(read_graph(model(MIXES[name])))


def test_reason_says_that_the_number_of_rows_was_computed_with() -> None:
    with pytest.raises(MixedRowsError, match="operator Cast computes with the number of rows"):
        check_graph(read_graph(model(MIXES["answers_that_tell_the_number_of_rows"])))


def test_a_shape_operator_with_an_attribute_given_twice_is_refused() -> None:
    nodes = [N("Shape", ["x"], ["rows"], start=0, end=1), N("Identity", ["x"], ["z"]), *FLATTEN]
    nodes[0] = onnx.NodeProto.FromString(nodes[0].SerializeToString())
    nodes[0].attribute.append(helper.make_attribute("end", 2))

    with pytest.raises(MixedRowsError):
        check_graph(read_graph(model(nodes)))


def test_an_operator_of_another_domain_named_shape_is_refused() -> None:
    nodes = [N("Shape", ["x"], ["rows"], domain="custom"), N("Identity", ["x"], ["z"]), *FLATTEN]

    with pytest.raises(MixedRowsError):
        check_graph(read_graph(model(nodes)))


@pytest.mark.parametrize("name", [*KEEPS, *MIXES])
def test_numbers_found_are_those_that_onnxruntime_gives(name: str) -> None:
    """A number that is wrong could put rows where they are not looked for."""
    given = model((KEEPS | MIXES)[name])
    graph = read_graph(given)
    known = {key: row_mixing._fixed(constant) for key, constant in graph.constants.items()}
    known["x"] = row_mixing._rows("x", graph.inputs[0].dims)
    try:
        for node in graph.nodes:
            row_mixing._follow(node, known)
    except MixedRowsError:
        assert name in MIXES
    computed = [key for key, tensor in known.items() if tensor.counts_rows or tensor.value is not None]
    shown = onnx.load_model_from_string(given)
    made = {output for node in shown.graph.node for output in node.output} - {"y"}
    wanted = [key for key in computed if key in made]
    shown.graph.output.extend(helper.make_value_info(key, onnx.TypeProto()) for key in wanted)
    shown = onnx.shape_inference.infer_shapes(shown)
    for rows in (2, 5):
        try:
            got = load_session(ModelSource(shown.SerializeToString())).run({"x": np.zeros((rows, *ROW), np.float32)})
        except HoldfastError:
            assert name in MIXES  # it fails for some numbers of rows
            continue
        for key in wanted:
            numbers = known[key].numbers
            expected = known[key].value if numbers is None else [rows if each is ROWS else each for each in numbers]
            assert np.array_equal(got[key].reshape(-1), np.reshape(np.array(expected), -1)), key
            assert got[key].shape == known[key].shape
