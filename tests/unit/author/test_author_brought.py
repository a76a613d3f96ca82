"""A step graph of another tool learns as ours does; one that breaks the contract is refused, with what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from tests.fakes.models import he_mlp
from tests.fakes.trainable_bundles import numbers, packed_with

from holdfast.author.contract import step_contract
from holdfast.author.pack import TrainingPlan
from holdfast.autodiff import reverse
from holdfast.autodiff.build import StepOptions, build_graphs
from holdfast.cli.main import main
from holdfast.errors import AutodiffError, TrainingError
from holdfast.learn.data import LocalDataset
from holdfast.learn.trainable import TrainableBundle, open_trainable
from holdfast.learn.training import TrainSettings
from holdfast.trust.keys import ECDSA_P256
from holdfast.trust.keystore import KeyStore

README = Path(__file__).resolve().parents[3] / "runtime" / "README.md"
MODEL = he_mlp([4, 8, 2])
PLAIN = TrainingPlan(batch=10, loss="mse")
SETTINGS = TrainSettings(epochs=5, batch=10, learning_rate=0.02, seed=1)


def made_by_the_readme(folder: Path) -> Path:
    """Runs the README's own lines in a folder with `loss.onnx` and `contract.json`."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text().split("## Bring your own step graph")[1], re.DOTALL)
    for name in ("contract.json", "loss.onnx", "gradient.onnx"):
        code = code.replace(f'"{name}"', repr(str(folder / name)))
    exec(compile(code, "README", "exec"), {})  # our own document
    return folder / "gradient.onnx"


def dataset(opened: TrainableBundle, count: int = 33) -> LocalDataset:
    arrays = numbers(count)
    return LocalDataset.from_arrays({"input": arrays["x"], "y": arrays["y"]}, opened.contract)


@pytest.fixture(scope="module")
def gradient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the README's commands, from the command line on."""
    folder = tmp_path_factory.mktemp("brought")
    (folder / "model.onnx").write_bytes(MODEL)
    arguments = ["bundle", "contract", str(folder / "model.onnx"), "--loss", "mse", "-o", str(folder / "loss.onnx")]
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda text, **_: printed.append(text))
        assert main([*arguments, "--json"]) == 0
    (folder / "contract.json").write_text(printed[0])
    return made_by_the_readme(folder)


@pytest.mark.parametrize(
    "plan",
    [
        PLAIN,
        TrainingPlan(batch=10, loss="mse", optimizer="adam"),
        TrainingPlan(batch=10, loss="mse", optimizer="momentum", gradient_clip=0.5, proximal_mu=0.1),
    ],
)
def test_a_graph_of_onnx_ad_learns_as_ours_does(gradient: Path, plan: TrainingPlan) -> None:
    ours = open_trainable(packed_with(plan))
    fields = {name: getattr(plan, name) for name in plan.__slots__}
    theirs = open_trainable(packed_with(TrainingPlan(**{**fields, "step_graph": gradient.read_bytes()})))
    assert theirs.train_graph != ours.train_graph
    assert (ours.training.step_graph, theirs.training.step_graph) == ("built", "brought")

    deltas = [each.trainer.train(each.weights, dataset(each), SETTINGS).delta for each in (ours, theirs)]

    assert np.linalg.norm(deltas[0]) > 0.1
    np.testing.assert_allclose(deltas[1], deltas[0], rtol=0, atol=1e-5 * np.linalg.norm(deltas[0]))


def test_from_the_command_line(gradient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    KeyStore(tmp_path / "author").create("author", ECDSA_P256)
    (tmp_path / "model.onnx").write_bytes(MODEL)
    arrays = numbers(100)
    np.savez(tmp_path / "reference.npz", input=arrays["x"])
    np.savez(tmp_path / "data.npz", **arrays)
    about = [
        "--version",
        "1",
        "--owner",
        "o@example.org",
        "--purpose",
        "tests",
        "--loss",
        "mse",
        "--optimizer",
        "adamw",
    ]
    files = ["--key", str(tmp_path / "author"), "--samples", str(tmp_path / "reference.npz"), "-o", str(tmp_path / "b")]
    pack = ["bundle", "pack", str(tmp_path / "model.onnx"), *about, *files]

    assert main([*pack, "--step-graph", str(gradient)]) == 0
    capsys.readouterr()
    assert main(["train", str(tmp_path / "b"), "--data", str(tmp_path / "data.npz"), "--lr", "0.02", "--json"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["loss_after"] < facts["loss_before"]
    assert main([*pack, "--step-graph", str(gradient), "--batch", "5"]) == 1
    assert "input 'input' of the step graph is float[10, 4], expected float[5, 4]" in capsys.readouterr().err
    assert main([*pack, "--step-graph", str(gradient), "--serve-only"]) == 2
    assert main([*pack, "--step-graph", str(tmp_path / "none.onnx")]) == 2


def test_an_operator_without_a_rule_learns_with_a_step_graph_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    step, known = own_step(), reverse.rule_for
    monkeypatch.setattr(reverse, "rule_for", lambda node: None if node.op_type == "Relu" else known(node))
    with pytest.raises(
        AutodiffError, match=r"bring a training-step graph of your own \(holdfast bundle contract .*--step-graph"
    ):
        build_graphs(MODEL, batch=10, loss="mse")

    opened = open_trainable(packed_with(TrainingPlan(batch=10, loss="mse", optimizer="sgd", step_graph=step)))

    result = opened.trainer.train(opened.weights, dataset(opened), SETTINGS)
    assert result.loss_after < result.loss_before


def changed(change: Callable[[ModelProto], None]) -> bytes:
    """Our own step graph, as if somebody had brought it, with a defect."""
    model = onnx.load_from_string(own_step())
    change(model)
    return model.SerializeToString()


@cache
def own_step() -> bytes:
    return build_graphs(MODEL, batch=10, loss="mse").train


def rename_input(model: ModelProto) -> None:
    for value in model.graph.input:
        value.name = "other" if value.name == "labels" else value.name
    for node in model.graph.node:
        node.input[:] = ["other" if each == "labels" else each for each in node.input]


def other_shape(model: ModelProto) -> None:
    (value,) = [each for each in model.graph.input if each.name == "learning_rate"]
    value.CopyFrom(helper.make_tensor_value_info("learning_rate", TensorProto.FLOAT, [1]))


def other_dtype(model: ModelProto) -> None:
    (value,) = [each for each in model.graph.output if each.name == "loss"]
    model.graph.node.append(helper.make_node("Cast", ["loss.kept"], ["loss"], to=TensorProto.DOUBLE))
    for node in list(model.graph.node)[:-1]:
        node.output[:] = ["loss.kept" if each == "loss" else each for each in node.output]
        node.input[:] = ["loss.kept" if each == "loss" else each for each in node.input]
    value.type.tensor_type.elem_type = TensorProto.DOUBLE


def without_an_output(model: ModelProto) -> None:
    kept = [each for each in model.graph.output if each.name != "layer1.bias.new"]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def one_output_more(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["input"], ["copy"]))
    model.graph.output.append(helper.make_tensor_value_info("copy", TensorProto.FLOAT, [10, 4]))


def contributed_operator(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node.append(helper.make_node("BiasGelu", ["input", "input"], ["z"], domain="com.microsoft"))


def random_operator(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("RandomNormalLike", ["input"], ["z"], name="noise"))


def constant_parameter(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "layer1.bias"))


def elsewhere(model: ModelProto) -> None:
    tensor = model.graph.initializer.add(name="outside", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secrets.bin")


def old_operators(model: ModelProto) -> None:
    model.opset_import[0].version = 12


def wrong_sign(model: ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["kept" if each == "layer1.bias.new" else each for each in node.output]
    model.graph.node.append(helper.make_node("Sub", ["layer1.bias", "kept"], ["change"]))
    model.graph.node.append(helper.make_node("Add", ["layer1.bias", "change"], ["layer1.bias.new"]))


def stale_copy(model: ModelProto) -> None:
    """What an exporter leaves that folds a parameter into a constant: right today, wrong after the first step."""
    weights = {t.name: t for t in onnx.load_from_string(MODEL).graph.initializer}
    copy = numpy_helper.from_array(numpy_helper.to_array(weights["layer1.weight"]), "folded")
    model.graph.initializer.append(copy)
    updated = [node for node in model.graph.node if "layer1.weight.new" in node.output]
    for node in model.graph.node:
        is_update = node in updated or (node.op_type == "Gemm" and list(node.input[2:]) == ["layer1.weight"])
        if not is_update and node.op_type != "Sub":
            node.input[:] = ["folded" if each == "layer1.weight" else each for each in node.input]


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        (rename_input, "lacks the input 'labels'"),
        (other_shape, r"input 'learning_rate' of the step graph is float\[1\], expected float\[\]"),
        (other_dtype, r"output 'loss' of the step graph is double\[\], expected float\[\]"),
        (without_an_output, r"lacks the output 'layer1.bias.new'"),
        (one_output_more, "has the output 'copy'"),
        (contributed_operator, r"com.microsoft.BiasGelu\) of the step graph is no standard operator"),
        (random_operator, r"'noise' \(RandomNormalLike\) of the step graph draws at random"),
        (constant_parameter, "'layer1.bias' learns, and is a constant in the step graph"),
        (elsewhere, "'outside' of the step graph lies in another file"),
        (old_operators, "of operator set 12; 13 to"),
        (wrong_sign, "gradient is wrong"),
        (stale_copy, "gradient is wrong"),
    ],
)
def test_a_step_graph_with_a_defect_is_refused(defect: Callable[[ModelProto], None], message: str) -> None:
    with pytest.raises((AutodiffError, TrainingError), match=message):
        packed_with(TrainingPlan(batch=10, loss="mse", step_graph=changed(defect)))


@pytest.mark.parametrize("data", [b"no model", b"\x08"])
def test_bytes_that_are_no_graph_are_refused(data: bytes) -> None:
    with pytest.raises(AutodiffError, match="not a valid ONNX model"):
        packed_with(TrainingPlan(batch=10, loss="mse", step_graph=data))


def test_a_step_graph_with_its_optimizer_in_it_is_taken() -> None:
    opened = open_trainable(packed_with(TrainingPlan(batch=10, loss="mse", step_graph=own_step())))
    ours = open_trainable(packed_with(PLAIN))

    deltas = [each.trainer.train(each.weights, dataset(each), SETTINGS).delta for each in (opened, ours)]

    np.testing.assert_array_equal(deltas[0], deltas[1])


@pytest.mark.parametrize("options", [StepOptions(dropout=True), StepOptions(batch_norm="local")])
def test_what_only_a_built_graph_can_have_is_refused(options: StepOptions) -> None:
    with pytest.raises(AutodiffError, match="leave out batch_norm, dropout and accumulate"):
        packed_with(TrainingPlan(batch=10, loss="mse", step=options, step_graph=own_step()))


def test_frozen_parameters_of_the_contracts_loss_become_references() -> None:
    plan = TrainingPlan(batch=10, loss="mse", trainable=("layer1.*",))
    loss = onnx.load_from_string(step_contract(MODEL, plan).loss_graph)
    assert {"layer0.weight", "layer0.bias"} <= {tensor.name for tensor in loss.graph.initializer}
    step = onnx.load_from_string(build_graphs(MODEL, batch=10, loss="mse", trainable=("layer1.*",)).train)
    for number, tensor in enumerate(step.graph.initializer):
        for own in loss.graph.initializer:
            if own.name == tensor.name and tensor.data_location == TensorProto.EXTERNAL:
                step.graph.initializer[number].CopyFrom(own)

    brought = TrainingPlan(batch=10, loss="mse", trainable=("layer1.*",), step_graph=step.SerializeToString())

    opened = open_trainable(packed_with(brought))
    kept = {t.name: t for t in onnx.load_from_string(opened.train_graph).graph.initializer}
    assert kept["layer0.weight"].data_location == TensorProto.EXTERNAL
