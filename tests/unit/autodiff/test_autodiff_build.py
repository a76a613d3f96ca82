"""Building graphs: the contract they keep, and each model that is refused with the node and the way out."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.fakes.models import classifier, he_mlp

from holdfast.autodiff.build import TrainingGraphs, build_graphs
from holdfast.autodiff.emission import IR_VERSION
from holdfast.autodiff.externalise import split_weights
from holdfast.autodiff.parameters import unshare_parameters
from holdfast.autodiff.selfcheck import check_gradients
from holdfast.errors import AutodiffError

node = helper.make_node
W34 = {"w": np.ones((3, 4), np.float32)}
X3 = {"x": ("batch", 3)}


def value_names(graph: bytes) -> tuple[list[str], list[str]]:
    proto = onnx.load_model_from_string(graph).graph
    return [v.name for v in proto.input], [v.name for v in proto.output]


def run_step(graphs: TrainingGraphs, model: bytes, labels: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(graphs.train, providers=["CPUExecutionProvider"])
    tensors = graphs.layout.unpack(np.frombuffer(split_weights(model).weights, "<f4"))
    x = np.random.default_rng(0).standard_normal((graphs.batch, 4)).astype(np.float32)
    feeds = {**tensors, "input": x, "labels": labels, "learning_rate": np.array(0.5, np.float32)}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_graphs_keep_the_contract_of_names() -> None:
    graphs = build_graphs(he_mlp([4, 8, 3]), batch=5)
    parameters = ["layer0.weight", "layer0.bias", "layer1.weight", "layer1.bias"]

    assert value_names(graphs.train) == (
        [*parameters, "input", "labels", "learning_rate"],
        [*(f"{name}.new" for name in parameters), "loss"],
    )
    assert value_names(graphs.evaluate) == ([*parameters, "input", "labels"], ["loss_sum", "correct", "count"])
    assert value_names(graphs.loss) == ([*parameters, "input", "labels"], ["loss"])
    assert graphs.input_gradient is not None
    assert value_names(graphs.input_gradient) == ([*parameters, "input", "labels"], ["input.gradient"])
    assert [entry.name for entry in graphs.parameters] == parameters
    assert (graphs.batch, graphs.class_count) == (5, 3)


def test_graphs_use_standard_operators_and_pinned_versions() -> None:
    graphs = build_graphs(he_mlp([4, 8, 3], opset=13), batch=5)

    for graph in (graphs.train, graphs.evaluate, graphs.loss, graphs.input_gradient):
        assert graph is not None
        model = onnx.load_model_from_string(graph)
        assert model.ir_version == IR_VERSION == 10
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
        assert {n.domain for n in model.graph.node} == {""}


def test_graphs_are_the_same_bytes_each_time() -> None:
    model = he_mlp([4, 8, 3])

    assert build_graphs(model, batch=5) == build_graphs(model, batch=5)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 20, 23])
def test_graphs_of_every_operator_set_train_alike(opset: int) -> None:
    labels = np.array([0, 1, 2, -1])
    model = he_mlp([4, 8, 3], opset=opset)

    found = run_step(build_graphs(model, batch=4), model, labels)

    expected = run_step(build_graphs(he_mlp([4, 8, 3]), batch=4), model, labels)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-7)


def test_graph_of_a_model_that_ends_in_softmax_trains_on_its_logits() -> None:
    labels = np.array([0, 1, 2, 1])
    plain, soft = he_mlp([4, 8, 3]), he_mlp([4, 8, 3], softmax=True)

    expected = run_step(build_graphs(plain, batch=4), plain, labels)
    found = run_step(build_graphs(soft, batch=4), soft, labels)

    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_graph_of_a_model_with_label_and_probability_outputs_trains_on_the_logits() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["z"]),
        node("LogSoftmax", ["z"], ["logp"]),
        node("Identity", ["logp"], ["scores"]),
        node("Softmax", ["z"], ["probability"]),
    ]

    graphs = build_graphs(classifier(nodes, W34, inputs=X3, outputs=["scores", "probability"]), batch=2)

    operators = {n.op_type for n in onnx.load_model_from_string(graphs.loss).graph.node}
    assert operators.isdisjoint({"Softmax", "LogSoftmax"})


def test_a_batch_of_padding_only_has_loss_zero_and_changes_nothing() -> None:
    model = he_mlp([4, 8, 3])
    graphs = build_graphs(model, batch=4)

    found = run_step(graphs, model, np.full(4, -1))

    assert found["loss"] == 0
    for name, tensor in graphs.layout.unpack(np.frombuffer(split_weights(model).weights, "<f4")).items():
        np.testing.assert_array_equal(found[f"{name}.new"], tensor)


def test_frozen_parameters_are_references_and_not_copies() -> None:
    graphs = build_graphs(he_mlp([4, 8, 3]), batch=4, trainable="layer1.*")

    proto = onnx.load_model_from_string(graphs.train).graph
    outside = {t.name for t in proto.initializer if t.data_location == TensorProto.EXTERNAL}
    assert outside == {"layer0.weight", "layer0.bias"}
    assert [entry.name for entry in graphs.parameters] == ["layer1.weight", "layer1.bias"]
    assert len(graphs.layout.entries) == 4


def test_head_only_stops_before_a_node_without_rule() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Hardmax", ["h"], ["e"], name="strange"),
        node("MatMul", ["e", "v"], ["logits"]),
    ]
    weights = {**W34, "v": np.ones((4, 2), np.float32)}
    model = classifier(nodes, weights, inputs=X3)

    graphs = build_graphs(model, batch=2, trainable=["v"])

    assert [entry.name for entry in graphs.parameters] == ["v"]
    assert graphs.input_gradient is None
    assert "'strange' (Hardmax)" in graphs.input_gradient_refusal
    with pytest.raises(AutodiffError, match=r"'strange' \(Hardmax\).*fewer parameters trainable.*of your own"):
        build_graphs(model, batch=2)


def test_shape_arithmetic_needs_no_rule() -> None:
    nodes = [
        node("Shape", ["x"], ["s"], start=0, end=1),
        node("Concat", ["s", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["flat"]),
        node("MatMul", ["flat", "w"], ["logits"]),
    ]
    weights = {**W34, "rest": np.array([-1], np.int64)}

    graphs = build_graphs(classifier(nodes, weights, inputs={"x": ("batch", 1, 3)}), batch=2)

    assert graphs.input_gradient is not None
    assert [entry.name for entry in graphs.parameters] == ["w"]


def test_functions_are_inlined() -> None:
    body = helper.make_function(
        "custom", "Dense", ["a", "b"], ["c"], [node("MatMul", ["a", "b"], ["c"])], [helper.make_opsetid("", 20)]
    )
    model = onnx.load_model_from_string(
        classifier([node("Dense", ["x", "w"], ["logits"], domain="custom")], W34, inputs=X3)
    )
    model.opset_import.append(helper.make_opsetid("custom", 1))
    model.functions.append(body)

    graphs = build_graphs(model.SerializeToString(), batch=2)

    assert check_gradients(graphs, split_weights(model.SerializeToString()).weights).passed


def shared_model() -> bytes:
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Add", ["h", "scale"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("Mul", ["r", "scale"], ["logits"]),
    ]
    weights = {"w": np.eye(3, dtype=np.float32), "scale": np.ones(3, np.float32)}
    return classifier(nodes, weights, inputs=X3)


def test_a_parameter_with_two_readers_is_refused_unless_tied_or_unshared() -> None:
    model = shared_model()

    with pytest.raises(AutodiffError, match=r"'scale' is read in 2 places.*unshare_parameters"):
        build_graphs(model, batch=2)

    assert len(build_graphs(model, batch=2, tied=["scale"]).parameters) == 2
    apart = unshare_parameters(model)
    assert [e.name for e in build_graphs(apart, batch=2).parameters] == ["w", "scale", "scale.2"]


def test_unshare_keeps_what_the_model_computes_and_what_is_tied() -> None:
    model = shared_model()
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)

    apart = unshare_parameters(model)

    before, after = (
        onnxruntime.InferenceSession(m, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for m in (model, apart)
    )
    np.testing.assert_array_equal(before, after)
    assert unshare_parameters(model, tied=["sc*"]) == model
    assert unshare_parameters(apart) == apart


def matmul(**options: object) -> bytes:
    defaults: dict[str, object] = {"inputs": X3}
    return classifier([node("MatMul", ["x", "w"], ["logits"], name="mm")], W34, **{**defaults, **options})  # type: ignore[arg-type]


def two_heads() -> bytes:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"])]
    return classifier(nodes, W34, inputs=X3, outputs=["a", "b"])


def named_labels() -> bytes:
    nodes = [node("MatMul", ["x", "w"], ["labels"]), node("Relu", ["labels"], ["logits"])]
    return classifier(nodes, W34, inputs=X3)


def external() -> bytes:
    return split_weights(he_mlp([4, 3])).skeleton


@pytest.mark.parametrize(
    ("defect", "model", "message"),
    [
        ("no_onnx", b"\x00\x01 not a model", "not a valid ONNX model"),
        ("empty", b"", "not a valid ONNX model"),
        ("truncated", he_mlp([4, 3])[:-40], "not a valid ONNX model"),
        ("old_operator_set", he_mlp([4, 3], opset=6), "operator set 6 is too old"),
        ("fixed_batch", matmul(inputs={"x": (7, 3)}), "fixed batch size 7, asked for 2"),
        ("dynamic_features", matmul(inputs={"x": ("batch", "n")}), "axis 1 of input 'x' is dynamic"),
        ("scalar_input", matmul(inputs={"x": ()}), "first axis is the batch"),
        ("two_heads", two_heads(), "found 'a', 'b'"),
        ("double", matmul(element_type=TensorProto.DOUBLE), "can't be inferred|not a valid|found none"),
        ("one_class", classifier(
            [node("MatMul", ["x", "w"], ["logits"])], {"w": np.ones((3, 1), np.float32)}, inputs=X3
        ), r"have shape \[2, 1\]"),
        ("reserved_name", named_labels(), "a value called 'labels'"),
        ("weights_elsewhere", external(), "lies in another file"),
        ("no_parameters", classifier([node("Relu", ["x"], ["logits"])], {}, inputs=X3), "no trainable parameter"),
    ],
)  # fmt: skip
def test_build_refuses(defect: str, model: bytes, message: str) -> None:
    with pytest.raises(AutodiffError, match=message):
        build_graphs(model, batch=2)


@pytest.mark.parametrize(
    ("defect", "options", "message"),
    [
        ("batch_zero", {"batch": 0}, "batch must be"),
        ("unknown_loss", {"batch": 2, "loss": "hinge"}, "unknown loss 'hinge'; expected one of softmax_cross_entropy"),
        ("unknown_optimizer", {"batch": 2, "optimizer": "lion"}, "unknown optimizer 'lion'; expected one of sgd"),
        ("pattern_fits_nothing", {"batch": 2, "trainable": "head.*"}, r"'head\.\*' fits no parameter; .* w"),
        ("empty_pattern_list", {"batch": 2, "trainable": []}, "no trainable parameter"),
    ],
)
def test_build_refuses_options(defect: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(AutodiffError, match=message):
        build_graphs(matmul(), **options)  # type: ignore[arg-type]


def test_build_refuses_a_trainable_parameter_that_nothing_reads() -> None:
    model = classifier([node("MatMul", ["x", "w"], ["logits"])], {**W34, "dead": np.ones(2, np.float32)}, inputs=X3)

    assert [e.name for e in build_graphs(model, batch=2).parameters] == ["w"]
    with pytest.raises(AutodiffError, match="don't depend on 'dead'"):
        build_graphs(model, batch=2, trainable=["dead"])


@pytest.mark.parametrize("trainable", ["all", ["w"]])
def test_build_refuses_a_parameter_read_inside_a_branch(trainable: str | list[str]) -> None:
    branch = helper.make_graph(
        [node("MatMul", ["x", "w"], ["inner"])], "then", [], [helper.make_tensor_value_info("inner", 1, (2, 4))]
    )
    nodes = [node("If", ["yes"], ["logits"], name="choice", then_branch=branch, else_branch=branch)]
    model = classifier(nodes, {**W34, "yes": np.array(True)}, inputs=X3)

    with pytest.raises(AutodiffError, match=r"'choice' \(If\)"):
        build_graphs(model, batch=2, trainable=trainable)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_build_of_a_damaged_model_succeeds_or_is_refused(data: st.DataObject) -> None:
    damaged = bytearray(he_mlp([4, 8, 3], softmax=True, opset=data.draw(st.sampled_from([13, 20]))))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))

    try:
        graphs = build_graphs(bytes(damaged), batch=2)
    except AutodiffError:
        return

    assert graphs.parameters


def test_build_and_split_refuse_an_initializer_whose_data_do_not_fill_its_shape() -> None:
    model = onnx.load_model_from_string(he_mlp([4, 3]))
    model.graph.initializer[0].raw_data += bytes(4)

    for reader in (lambda data: build_graphs(data, batch=2), split_weights):
        with pytest.raises(AutodiffError, match=r"layer0\.weight"):
            reader(model.SerializeToString())
