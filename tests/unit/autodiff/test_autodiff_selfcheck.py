"""The self-check finds a wrong gradient whatever made it; random networks pass it; split and join are inverse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tests.fakes.models import classifier, he_mlp

from holdfast.autodiff.build import build_graphs
from holdfast.autodiff.externalise import join_weights, split_weights
from holdfast.autodiff.parameters import unshare_parameters
from holdfast.autodiff.selfcheck import TOLERANCE, check_gradients
from holdfast.errors import AutodiffError, FormatError


def test_selfcheck_passes_a_right_step_graph_and_records_it() -> None:
    model = he_mlp([8, 16, 4])

    check = check_gradients(build_graphs(model, batch=6), split_weights(model).weights)

    assert check.passed
    assert max(check.directional_error, check.reference_error) < 1e-5
    assert set(check.to_fields()) >= {"directional_error", "reference_error", "directions", "step", "tolerance"}


def test_selfcheck_passes_a_deep_net_whose_kinks_lie_close() -> None:
    """With the first step of the difference, some rectified values change sign, and the slope is off by 1e-3."""
    model = he_mlp([200, 300, 300, 300, 10])

    check = check_gradients(build_graphs(model, batch=10), split_weights(model).weights)

    assert check.step < 1e-5
    assert max(check.directional_error, check.reference_error) < 1e-5


@pytest.mark.parametrize("factor", [1.01, -1.0, 0.0])
@pytest.mark.parametrize("parameter", ["layer0.weight", "layer0.bias", "layer1.bias"])
def test_selfcheck_finds_one_wrong_gradient(parameter: str, factor: float) -> None:
    model = he_mlp([8, 16, 4])
    graphs = build_graphs(model, batch=6)
    wrong = onnx.load_model_from_string(graphs.train)
    for each in wrong.graph.node:
        each.output[:] = ["right" if name == f"{parameter}.new" else name for name in each.output]
    wrong.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    wrong.graph.node.extend(
        [
            helper.make_node("Sub", ["right", parameter], ["change"]),
            helper.make_node("Mul", ["change", "factor"], ["scaled"]),
            helper.make_node("Add", [parameter, "scaled"], [f"{parameter}.new"]),
        ]
    )

    with pytest.raises(AutodiffError, match="gradient is wrong"):
        check_gradients(replace(graphs, train=wrong.SerializeToString()), split_weights(model).weights)


def test_selfcheck_passes_sequences_whose_lengths_come_with_the_samples() -> None:
    rng = np.random.default_rng(0)
    shapes = {"W": (1, 8, 3), "R": (1, 8, 2), "P": (1, 6), "head": (2, 3)}
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "W", "R", "", "lengths", "", "", "P"], ["", "last"], hidden_size=2),
        helper.make_node("Squeeze", ["last", "axis"], ["state"]),
        helper.make_node("MatMul", ["state", "head"], ["logits"]),
    ]
    model = onnx.load_from_string(
        classifier(nodes, {**tensors, "axis": np.array([0])}, inputs={"x": ("batch", 4, 3), "lengths": ("batch",)})
    )
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT32
    data = model.SerializeToString()
    examples = {
        "x": rng.standard_normal((5, 4, 3)).astype(np.float32),
        "lengths": np.array([1, 4, 2, 3, 4], np.int32),
    }

    check = check_gradients(build_graphs(data, batch=5), split_weights(data).weights, examples=examples)

    assert max(check.directional_error, check.reference_error) < 1e-5


def test_selfcheck_asks_for_examples_where_inputs_are_not_float() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["logits"]),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    model = classifier(nodes, weights, inputs={"x": ("batch", 3)}, element_type=TensorProto.INT64)
    graphs, blob = build_graphs(model, batch=2), split_weights(model).weights

    assert graphs.input_gradient_refusal == "the model has no float input"
    with pytest.raises(AutodiffError, match="'x' is not float32; pass examples"):
        check_gradients(graphs, blob)
    assert check_gradients(graphs, blob, examples={"x": np.array([[1, 2, 3], [0, -1, 4]])}).passed


@st.composite
def random_networks(draw: st.DrawFn) -> bytes:
    """A feed-forward net of random layers with skip connections, ending in 3 classes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    weights: dict[str, np.ndarray] = {}
    nodes: list[NodeProto] = []

    def parameter(*shape: int) -> str:
        name = f"p{len(weights)}"
        weights[name] = (rng.standard_normal(shape) * 0.7).astype(np.float32)
        return name

    def emit(operator: str, inputs: list[str], **attributes: float) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"v{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    value, width = "x", 4
    earlier: list[tuple[str, int]] = []
    for kind in draw(st.lists(st.sampled_from(["gemm", "matmul", "relu", "scale", "shift", "skip"]), max_size=7)):
        earlier.append((value, width))
        if kind == "gemm":
            old, width = width, draw(st.integers(2, 6))
            transposed = draw(st.integers(0, 1))
            shape = (width, old) if transposed else (old, width)
            value = emit("Gemm", [value, parameter(*shape), parameter(width)], transB=transposed, beta=0.5)
        elif kind == "matmul":
            old, width = width, draw(st.integers(2, 6))
            value = emit("MatMul", [value, parameter(old, width)])
        elif kind == "relu":
            value = emit("Relu", [value])
        elif kind == "skip":
            other = draw(st.sampled_from([v for v, w in earlier if w == width]))
            value = emit(draw(st.sampled_from(["Add", "Sub", "Mul"])), [value, other])
        else:
            value = emit("Mul" if kind == "scale" else "Add", [value, parameter(draw(st.sampled_from([1, width])))])
    nodes.append(helper.make_node("Gemm", [value, parameter(width, 3), parameter(3)], ["logits"]))
    return classifier(nodes, weights, inputs={"x": ("batch", 4)})


@settings(max_examples=40, deadline=None)
@given(random_networks())
def test_gradients_of_random_networks_pass_the_selfcheck(model: bytes) -> None:
    graphs = build_graphs(model, batch=3)

    check = check_gradients(graphs, split_weights(model).weights)

    assert max(check.directional_error, check.reference_error) <= TOLERANCE
    assert unshare_parameters(model) == model


@settings(max_examples=20, deadline=None)
@given(random_networks())
def test_split_then_join_is_the_model_and_the_runtime_agrees(model: bytes) -> None:
    skeleton, weights, layout = split_weights(model)
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)

    options = onnxruntime.SessionOptions()
    options.add_external_initializers_from_files_in_memory(["weights.bin"], [weights], [len(weights)])
    outputs = [
        onnxruntime.InferenceSession(bytes_, options_, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for bytes_, options_ in (
            (model, None),
            (skeleton, options),
            (join_weights(skeleton, weights, layout), None),
        )
    ]

    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert len(weights) == layout.size_bytes


def test_split_keeps_integers_and_scalars_inside() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Mul", ["r", "factor"], ["m"]),
        helper.make_node("MatMul", ["m", "w"], ["logits"]),
    ]
    weights = {"shape": np.array([-1, 3]), "factor": np.array(2, np.float32), "w": np.ones((3, 2), np.float32)}

    skeleton, blob, layout = split_weights(classifier(nodes, weights, inputs={"x": ("batch", 3)}))

    assert [entry.name for entry in layout.entries] == ["w"]
    assert blob == np.ones(6, "<f4").tobytes()
    kept = {t.name: t.data_location for t in onnx.load_model_from_string(skeleton).graph.initializer}
    assert kept == {"shape": TensorProto.DEFAULT, "factor": TensorProto.DEFAULT, "w": TensorProto.EXTERNAL}


def test_split_refuses_the_layout_of_another_model() -> None:
    layout = split_weights(he_mlp([4, 3])).layout

    with pytest.raises(AutodiffError, match="not that of this model"):
        split_weights(he_mlp([4, 8, 3]), layout=layout)


def test_join_refuses_weights_of_another_size() -> None:
    skeleton, weights, layout = split_weights(he_mlp([4, 3]))

    with pytest.raises(FormatError, match="expected 60"):
        join_weights(skeleton, weights + b"\0\0\0\0", layout)
