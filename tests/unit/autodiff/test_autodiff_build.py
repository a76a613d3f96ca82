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

from holdfast.autodiff import reading
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


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 20, 23, onnx.defs.onnx_opset_version()])
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

    operators = [n.op_type for n in onnx.load_model_from_string(graphs.loss).graph.node]
    assert "Softmax" not in operators
    assert operators.count("LogSoftmax") == 1  # that of the loss


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


EXPANDED = {
    "Attention": (
        [
            *(node("MatMul", ["x", name], [name.upper()]) for name in ("q", "k", "v")),
            node("Attention", ["Q", "K", "V"], ["y"], q_num_heads=2, kv_num_heads=2, is_causal=1),
        ],
        {"q": (6, 6), "k": (6, 6), "v": (6, 6)},
        24,
    ),
    "MeanVarianceNormalization": (
        [node("Mul", ["x", "w"], ["h"]), node("MeanVarianceNormalization", ["h"], ["y"], axes=[0, 2])],
        {"w": (4, 1)},
        20,
    ),
    "ThresholdedRelu": (
        [node("Mul", ["x", "w"], ["h"]), node("ThresholdedRelu", ["h"], ["y"], alpha=0.2)],
        {"w": (4, 1)},
        20,
    ),
    "CastLike": ([node("Mul", ["x", "w"], ["h"]), node("CastLike", ["h", "x"], ["y"])], {"w": (4, 1)}, 20),
    "RotaryEmbedding": (
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("RotaryEmbedding", ["h", "cosine", "sine", "places"], ["y"], num_heads=2),
        ],
        {"w": (6, 8), "cosine": (4, 2), "sine": (4, 2)},
        23,
    ),
    "NegativeLogLikelihoodLoss": (
        [
            node("Flatten", ["x"], ["flat"]),
            node("MatMul", ["flat", "w"], ["h"]),
            node("LogSoftmax", ["h"], ["l"], axis=1),
            node("NegativeLogLikelihoodLoss", ["l", "classes"], ["u"], reduction="none"),
            node("Unsqueeze", ["u", "one"], ["y"]),
        ],
        {"w": (24, 4)},
        20,
    ),
}


@pytest.mark.parametrize("operator", EXPANDED)
def test_operators_that_others_define_are_written_out_and_learn(operator: str) -> None:
    nodes, shapes, opset = EXPANDED[operator]
    rng = np.random.default_rng(0)
    width = {"RotaryEmbedding": 32, "NegativeLogLikelihoodLoss": 1}.get(operator, 24)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in {**shapes, "m": (width, 3)}.items()
    }
    weights |= {"classes": np.array([0, 1, 2]), "one": np.array([1]), "places": np.tile(np.arange(4), (3, 1))}
    end = [node("Flatten", ["y"], ["f"]), node("MatMul", ["f", "m"], ["logits"])]
    model = classifier([*nodes, *end], weights, inputs={"x": ("batch", 4, 6)}, opset=opset)

    graphs = build_graphs(model, batch=3)

    assert set(EXPANDED) == set(reading.EXPANDED)
    assert operator not in {each.op_type for each in onnx.load_model_from_string(graphs.train).graph.node}
    assert check_gradients(graphs, split_weights(model).weights).directional_error < 1e-5


RNN_WEIGHTS = {"W": (1, 8, 3), "R": (1, 8, 2)}
REFUSED_FORMS = {
    "slice_with_bounds_from_data": (
        [node("Slice", ["h", "bounds", "bounds"], ["y"], name="it")],
        r"the shape of 'y', made by node 'it' \(Slice\), is not static",
    ),
    "einsum_of_a_diagonal": ([node("Einsum", ["h"], ["y"], name="it", equation="bii->bi")], r"'it' \(Einsum\)"),
    "scatter_with_product": (
        [node("ScatterElements", ["h", "places", "h"], ["y"], name="it", reduction="mul")],
        r"'it' \(ScatterElements\): reduction 'mul'",
    ),
    "lstm_with_coupled_gates": (
        [node("LSTM", ["h", "W", "R"], ["y"], name="it", hidden_size=2, input_forget=1)],
        r"'it' \(LSTM\): the attribute input_forget",
    ),
    "lstm_with_other_activations": (
        [node("LSTM", ["h", "W", "R"], ["y"], name="it", hidden_size=2, activations=["Tanh", "Tanh", "Tanh"])],
        r"'it' \(LSTM\): the activations Tanh, Tanh, Tanh",
    ),
    "double_precision_inside": (
        [
            node("Cast", ["h"], ["d"], to=TensorProto.DOUBLE),
            node("Exp", ["d"], ["e"], name="it"),
            node("Cast", ["e"], ["y"], to=1),
        ],
        r"'it' \(Exp\) does not compute in float32",
    ),
    "layer_norm_whose_mean_is_used": (
        [node("LayerNormalization", ["h", "s"], ["n", "mean"], name="it"), node("Add", ["n", "mean"], ["y"])],
        r"'it' \(LayerNormalization\): its statistics are used",
    ),
}


@pytest.mark.parametrize("form", REFUSED_FORMS)
def test_build_names_the_node_whose_form_has_no_gradient(form: str) -> None:
    nodes, message = REFUSED_FORMS[form]
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 3), "s": (3,), **RNN_WEIGHTS}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights["places"] = np.zeros((2, 3, 3), np.int64)
    data = [node("ReduceMax", ["x"], ["top"], keepdims=0), node("Cast", ["top"], ["i"], to=TensorProto.INT64)]
    begin = [*data, node("Unsqueeze", ["i", "zero"], ["bounds"]), node("MatMul", ["x", "w"], ["h"])]
    end = [node("Reshape", ["y", "two"], ["r"]), node("ReduceSum", ["r", "one"], ["logits"], keepdims=0)]
    weights |= {"zero": np.array([0]), "two": np.array([2, -1, 3]), "one": np.array([1])}

    with pytest.raises(AutodiffError, match=message):
        build_graphs(classifier([*begin, *nodes, *end], weights, inputs={"x": ("batch", 3, 3)}), batch=2)


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
    chosen = [node("ReduceSum", ["x"], ["sum"], keepdims=0), node("Cast", ["sum"], ["yes"], to=TensorProto.BOOL)]
    made = node("If", ["yes"], ["logits"], name="choice", then_branch=branch, else_branch=branch)
    model = classifier([*chosen, made], W34, inputs=X3)

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
