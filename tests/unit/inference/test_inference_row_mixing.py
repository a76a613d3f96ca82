"""Rows of strangers share a run only if file and probe both show that they stay apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tests.fakes import served_models as models
from tests.fakes.clock import FakeClock
from tests.fakes.row_models import USUAL, model_of

from holdfast.errors import ModelError
from holdfast.inference.onnx_graph import read_graph
from holdfast.inference.onnx_wire import field_bytes, field_varint
from holdfast.inference.row_mixing import BUCKETS, PROVEN, Probe, check_graph, is_bounded, mixing_of
from holdfast.inference.row_shapes import MixedRowsError
from holdfast.inference.session import ModelSource, load_session

N = helper.make_node


def verdict(model: bytes) -> Probe:
    return mixing_of(model, load_session(ModelSource(model)), FakeClock())


def reason_of(model: bytes) -> str:
    """Why the file alone does not show that rows stay apart."""
    with pytest.raises(MixedRowsError) as refused:
        check_graph(read_graph(model))
    return str(refused.value)


@pytest.mark.parametrize("name", USUAL)
def test_usual_models_are_shown_to_keep_rows_apart(name: str) -> None:
    check_graph(read_graph(USUAL[name]))


@pytest.mark.parametrize("name", ["perceptron", "mlp", "convolutional", "digits", "two_inputs", "table"])
def test_usual_models_share_every_bucket(name: str) -> None:
    probe = verdict(USUAL[name])

    assert probe.mixing.is_allowed
    assert probe.mixing.reason == PROVEN
    assert probe.mixing.buckets == BUCKETS == tuple(probe.batch_s)


def chain(*nodes: onnx.NodeProto, row: Sequence[int] = (4,), **constants: np.ndarray) -> bytes:
    return model_of(nodes, row, constants)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


MIXING = {
    "mean_over_batch_and_back": chain(N("ReduceMean", ["x"], ["m"], axes=[0]), N("Sub", ["x", "m"], ["y"])),
    "batch_norm_in_training": chain(
        N("BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "m2", "v2"], training_mode=1),
        **{name: np.ones(4, dtype=np.float32) for name in "sbmv"},
    ),
    "softmax_over_batch": chain(N("Softmax", ["x"], ["y"], axis=0)),
    "softmax_over_batch_after_transpose": chain(
        N("Transpose", ["x"], ["t"]), N("Softmax", ["t"], ["s"], axis=1), N("Transpose", ["s"], ["y"])
    ),
    "rows_mixed_by_reshape_there_and_back": chain(
        N("Reshape", ["x", "two"], ["r"]),
        N("Softmax", ["r"], ["s"], axis=1),
        N("Reshape", ["s", "four"], ["y"]),
        two=ints(-1, 8),
        four=ints(-1, 4),
    ),
    "first_row_for_everybody": chain(
        N("Gather", ["x", "zero"], ["g"], axis=0), N("Add", ["x", "g"], ["y"]), zero=ints(0)
    ),
    "batch_contracted": chain(
        N("Transpose", ["x"], ["t"]), N("MatMul", ["t", "x"], ["c"]), N("MatMul", ["x", "c"], ["y"])
    ),
    "gemm_with_the_batch_as_weights": chain(N("Gemm", ["x", "x"], ["y"], transB=1)),
    "rows_shifted_by_one": chain(
        N("Slice", ["x", "one", "end", "axis"], ["late"]),
        N("Slice", ["x", "zero", "one", "axis"], ["early"]),
        N("Concat", ["late", "early"], ["y"], axis=0),
        one=ints(1),
        zero=ints(0),
        end=ints(2**31),
        axis=ints(0),
    ),
    "quantised_by_the_whole_batch": chain(
        N("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), N("DequantizeLinear", ["q", "s", "z"], ["y"])
    ),
    "number_of_neighbours": chain(
        N("Shape", ["x"], ["s"]),
        N("Cast", ["s"], ["c"], to=1),
        N("ReduceSum", ["c"], ["n"]),
        N("Add", ["x", "n"], ["y"]),
    ),
    "running_sum": chain(N("CumSum", ["x", "zero"], ["y"]), zero=np.array(0, dtype=np.int64)),
    "best_rows": chain(N("TopK", ["x", "one"], ["y", "places"], axis=0), one=ints(1)),
    "bias_from_the_batch": chain(  # fits when there are as many rows as channels
        N("ReduceMean", ["x"], ["b"], axes=[1, 2, 3], keepdims=0),
        N("Conv", ["x", "w", "b"], ["y"]),
        row=(3, 5, 5),
        w=np.ones((2, 3, 3, 3), dtype=np.float32),
    ),
    "rank_lost": model_of([N("Add", ["x", "x"], ["a"]), N("Softmax", ["a"], ["y"])], ()),
    "broadcast_against_the_batch": chain(
        N("Squeeze", ["x", "last"], ["flat"]), N("Add", ["x", "flat"], ["y"]), row=(1,), last=ints(1)
    ),
    "scan_over_the_batch": chain(
        N(
            "Scan",
            ["x"],
            ["y"],
            num_scan_inputs=1,
            body=helper.make_graph(
                [N("Identity", ["i"], ["o"])],
                "b",
                [helper.make_tensor_value_info("i", TensorProto.FLOAT, [4])],
                [helper.make_tensor_value_info("o", TensorProto.FLOAT, [4])],
            ),
        )
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_graph_that_mixes_rows_is_refused_by_its_file(name: str) -> None:
    load_session(ModelSource(MIXING[name]))  # it is a model: not refused for being broken

    assert reason_of(MIXING[name])
    assert not verdict(MIXING[name]).mixing.is_allowed


def test_reason_names_the_operator() -> None:
    assert reason_of(MIXING["softmax_over_batch"]) == "operator Softmax works along the batch axis"
    assert "DynamicQuantizeLinear is not known" in reason_of(MIXING["quantised_by_the_whole_batch"])


def test_an_output_that_is_the_same_for_all_rows_is_refused() -> None:
    model = chain(N("Add", ["x", "x"], ["a"]), N("Identity", ["c"], ["y"]), c=np.ones(4, dtype=np.float32))

    assert reason_of(model) == "output 'y' has no row per row of the inputs"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (models.identity(shape=(1, 4)), "no open batch axis"),
        (models.identity(shape=("n", "t")), "open axes beside the batch"),
        (models.identity(shape=()), "no open batch axis"),
        (model_of([N("Relu", ["x"], ["y"])], opset=12), "operator set 12"),
        (model_of([N("Relu", ["x"], ["y"])], opset=23), "operator set 23"),
    ],
)
def test_a_model_whose_shapes_cannot_all_be_probed_is_refused(model: bytes, reason: str) -> None:
    assert reason in reason_of(model)


def test_text_never_shares_a_run() -> None:
    probe = verdict(models.identity(TensorProto.STRING, ("n",)))

    assert not probe.mixing.is_allowed
    assert "text" in probe.mixing.reason


# --- what the file may try against its reader


def parsed(model: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(model)


def test_a_function_named_like_a_harmless_operator_is_refused() -> None:
    proto = parsed(models.perceptron())
    body = helper.make_function(
        "", "Relu", ["x"], ["y"], [N("ReduceMean", ["x"], ["y"])], [helper.make_opsetid("", 17)]
    )
    proto.functions.append(body)

    assert "functions" in reason_of(proto.SerializeToString())
    assert ("", "ReduceMean") in read_graph(proto.SerializeToString()).operators


def test_operators_of_nested_graphs_are_seen() -> None:
    graph = read_graph(models.hangs_at_first_run())

    assert {operator for _, operator in graph.operators} == {"Loop", "Identity", "Add"}
    assert not is_bounded(models.hangs_at_first_run())
    assert is_bounded(models.perceptron())
    assert not is_bounded(b"\xff")


def test_an_operator_of_another_domain_is_another_operator() -> None:
    model = chain(N("Relu", ["x"], ["y"], domain="com.example"))

    assert "com.example.Relu" in reason_of(model)


def test_a_harmless_operator_with_a_graph_inside_is_refused() -> None:
    proto = parsed(chain(N("Relu", ["x"], ["y"])))
    nested = helper.make_graph([], "nested", [], [])
    proto.graph.node[0].attribute.append(helper.make_attribute("body", nested))

    assert "holds a graph" in reason_of(proto.SerializeToString())


@pytest.mark.parametrize("operator", ["Add", "Concat", "Split", "Relu", "MatMul"])
def test_an_operator_without_inputs_or_outputs_is_refused(operator: str) -> None:
    for inputs, outputs in (([], ["y"]), (["", "x"], ["y"]), (["x"], [])):
        assert reason_of(chain(N(operator, inputs, outputs, axis=1)))


def test_an_attribute_given_twice_is_refused() -> None:
    proto = parsed(chain(N("Softmax", ["x"], ["y"], axis=1)))
    proto.graph.node[0].attribute.append(helper.make_attribute("axis", 0))

    assert "read in two ways" in reason_of(proto.SerializeToString())


def test_a_graph_split_over_two_fields_is_read_as_protobuf_merges_it() -> None:
    harmless, harmful = chain(N("Relu", ["x"], ["a"])), parsed(chain(N("Softmax", ["a"], ["y"], axis=0)))
    del harmful.graph.input[:]
    merged = harmless + field_bytes(7, harmful.graph.SerializeToString())

    assert [node.op_type for node in parsed(merged).graph.node] == ["Relu", "Softmax"]
    assert [node.operator for node in read_graph(merged).nodes] == ["Relu", "Softmax"]
    assert reason_of(merged)


def test_an_operator_named_twice_is_the_last_name_as_in_protobuf() -> None:
    proto = parsed(chain(N("Relu", ["x"], ["y"])))
    node = proto.graph.node[0].SerializeToString() + field_bytes(4, "Sigmoid")
    del proto.graph.node[:]
    model = proto.SerializeToString() + field_bytes(7, field_bytes(1, node))

    assert parsed(model).graph.node[0].op_type == "Sigmoid"
    assert read_graph(model).nodes[0].operator == "Sigmoid"


def test_a_field_number_past_32_bits_is_refused() -> None:
    # protobuf's parsers drop the bits beyond 32 and would read field 7, a graph that we had skipped
    hidden = chain(N("Softmax", ["x"], ["y"], axis=0))
    tag = (1 << 32) | (7 << 3) | 2
    field = bytes(
        [tag & 0x7F | 0x80, tag >> 7 & 0x7F | 0x80, tag >> 14 & 0x7F | 0x80, tag >> 21 & 0x7F | 0x80, tag >> 28]
    )

    with pytest.raises(ModelError, match="field number"):
        read_graph(field + field_varint(0, len(hidden))[1:] + hidden)


@pytest.mark.parametrize("what", ["initializer", "input", "output_of_a_node"])
def test_a_name_given_twice_is_refused(what: str) -> None:
    proto = parsed(chain(N("Add", ["x", "c"], ["y"]), c=np.ones(4, dtype=np.float32)))
    if what == "initializer":
        proto.graph.initializer.append(numpy_helper.from_array(np.ones((3, 4), dtype=np.float32), "c"))
    elif what == "input":
        proto.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 9]))
    else:
        proto.graph.node.append(N("Softmax", ["x"], ["y"], axis=1))

    with pytest.raises(ModelError, match=r"same name|given twice"):
        check_graph(read_graph(proto.SerializeToString()))


def test_a_constant_that_is_an_input_too_stays_a_constant() -> None:
    """ONNX Runtime lets callers override it, but only by name, and our session takes the declared inputs alone."""
    proto = parsed(chain(N("Add", ["x", "c"], ["y"]), c=np.ones(4, dtype=np.float32)))
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [4]))
    model = proto.SerializeToString()

    check_graph(read_graph(model))
    assert [spec.name for spec in load_session(ModelSource(model)).inputs] == ["x"]


def test_a_shape_in_an_external_file_is_not_guessed() -> None:
    proto = parsed(chain(N("Reshape", ["x", "s"], ["y"]), s=ints(-1, 2, 2)))
    proto.graph.initializer[0].data_location = TensorProto.EXTERNAL
    proto.graph.initializer[0].external_data.add(key="location", value="w")

    assert "not a constant in the file" in reason_of(proto.SerializeToString())


def test_sparse_constants_are_refused() -> None:
    proto = parsed(models.perceptron())
    proto.graph.sparse_initializer.add()

    assert "sparse" in reason_of(proto.SerializeToString())


@given(st.integers(0, 5_000), st.integers(0, 255))
def test_any_flipped_byte_ends_in_a_verdict(position: int, value: int) -> None:
    data = bytearray(USUAL["encoder"])
    data[position % len(data)] = value

    try:
        check_graph(read_graph(bytes(data)))
    except ModelError:
        return


@given(st.sampled_from(sorted(USUAL)))
def test_reader_agrees_with_onnx(name: str) -> None:
    graph, proto = read_graph(USUAL[name]), parsed(USUAL[name]).graph

    assert [(node.operator, list(node.inputs), list(node.outputs)) for node in graph.nodes] == [
        (node.op_type, list(node.input), list(node.output)) for node in proto.node
    ]
    for node, expected in zip(graph.nodes, proto.node, strict=True):
        values = {each.name: helper.get_attribute_value(each) for each in expected.attribute}
        assert dict(node.integers) == {key: value for key, value in values.items() if isinstance(value, int)}
        assert {key: list(value) for key, value in node.lists.items()} == {
            key: list(value) for key, value in values.items() if isinstance(value, list | tuple)
        }
    for tensor in proto.initializer:
        assert graph.constants[tensor.name].shape == tuple(tensor.dims)
        value = graph.constants[tensor.name].value
        assert value is None or np.array_equal(value, numpy_helper.to_array(tensor))
