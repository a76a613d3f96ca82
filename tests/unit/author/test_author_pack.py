"""A packed bundle holds what devices need, measured with the runtime they use."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from tests.fakes import models, served_models

from holdfast.author.pack import RUNTIME_BELOW, RUNTIME_MINIMUM, ModelFacts, TrainingPlan, pack
from holdfast.author.reference import Samples, batch_mixing, find_scores
from holdfast.autodiff.build import StepOptions
from holdfast.bundle.files import EVALUATE_GRAPH, TRAIN_GRAPH, WEIGHTS_FILE
from holdfast.bundle.manifest import Scores
from holdfast.bundle.verify import Trust, VerifiedBundle, read_bundle, verify_bundle
from holdfast.errors import AutodiffError, BundleError, DatasetError, InvalidTensorError
from holdfast.inference.session import ModelSource, load_session
from holdfast.trust.keys import ECDSA_P256, PrivateKey
from holdfast.update.layout import FlatLayout

AUTHOR = PrivateKey.generate(ECDSA_P256)
MODEL = models.he_mlp((5, 7, 3))
FACTS = ModelFacts("triage", "1", "Dr. Who", "sorts", labels=("a", "b", "c"), max_update_norm=3.0)
PLAN = TrainingPlan(batch=4)
RNG = np.random.default_rng(3)
SAMPLES = Samples({"input": RNG.standard_normal((40, 5)).astype(np.float32)}, RNG.integers(0, 3, 40))


def packed(training: TrainingPlan | None = PLAN, model: bytes = MODEL) -> VerifiedBundle:
    data = pack(model, FACTS, SAMPLES, AUTHOR, training=training)
    return verify_bundle(read_bundle(data), Trust((AUTHOR.public_key,)))


def test_pack_makes_a_bundle_that_its_author_signed() -> None:
    bundle = packed()

    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.labels) == ("triage", "1", ("a", "b", "c"))
    assert [(t.name, t.dtype, t.shape) for t in manifest.inputs] == [("input", "float32", (None, 5))]
    assert manifest.training is not None
    assert manifest.training.batch == 4
    assert manifest.change_envelope.max_update_norm == 3.0
    assert manifest.batch_mixing == "independent"
    assert manifest.scores == Scores("logits", "logits")
    assert all(parameter.trainable for parameter in manifest.parameters)
    assert manifest.gradient_check is not None
    assert manifest.gradient_check.directional_error < manifest.gradient_check.tolerance
    assert "Dr. Who" in bundle.files["card.md"].decode()


def test_packed_model_answers_as_the_model_that_was_packed() -> None:
    bundle = packed()

    served = load_session(ModelSource(bundle.files["model.onnx"], {WEIGHTS_FILE: bundle.files[WEIGHTS_FILE]}))

    expected = load_session(ModelSource(MODEL)).run(dict(SAMPLES.inputs))["logits"]
    np.testing.assert_array_equal(served.run(dict(SAMPLES.inputs))["logits"], expected)
    np.testing.assert_array_equal(bundle.golden.outputs["logits"], expected[:8])


def test_packed_training_graph_is_the_contract_of_the_manifest() -> None:
    bundle = packed()
    layout = FlatLayout.from_fields(bundle.manifest.layout_fields())

    step = load_session(ModelSource(bundle.files[TRAIN_GRAPH]))

    names = [entry.name for entry in layout.trainable]
    assert {spec.name for spec in step.inputs} == {*names, "input", "labels", "learning_rate"}
    assert {spec.name for spec in step.outputs} == {*(f"{name}.new" for name in names), "loss"}
    assert EVALUATE_GRAPH in bundle.files


def test_packed_profile_counts_every_reference_row() -> None:
    bundle = packed()

    profile = bundle.profile
    assert profile.rows == 40
    assert set(profile.features) == {f"input[{column}]" for column in range(5)}
    # deciles: ten bins of four rows each
    assert all(counts == (4,) * 10 for counts in profile.features.values())
    assert sum(profile.confidence) == sum(profile.predictions.values()) == 40
    logits = load_session(ModelSource(MODEL)).run(dict(SAMPLES.inputs))["logits"]
    assert profile.baseline["accuracy"] == pytest.approx(float(np.mean(logits.argmax(axis=1) == SAMPLES.labels)))


def test_pack_is_deterministic_but_for_the_signature() -> None:
    assert packed().manifest_bytes == packed().manifest_bytes


def test_pack_of_a_part_that_learns_freezes_the_rest() -> None:
    bundle = packed(TrainingPlan(batch=4, trainable=("layer1.*",)))

    assert {p.name: p.trainable for p in bundle.manifest.parameters} == {
        "layer0.weight": False,
        "layer0.bias": False,
        "layer1.weight": True,
        "layer1.bias": True,
    }


def test_pack_without_training_has_no_graphs_and_nothing_learns() -> None:
    bundle = packed(None)

    assert bundle.manifest.training is None
    assert TRAIN_GRAPH not in bundle.files
    assert not any(parameter.trainable for parameter in bundle.manifest.parameters)


def test_pack_of_a_model_without_parameters_can_be_served() -> None:
    samples = Samples({"x": np.ones((3, 4), dtype=np.float32)})
    facts = ModelFacts("same", "1", "o", "p")

    bundle = read_bundle(pack(served_models.identity(), facts, samples, AUTHOR, training=None))

    assert bundle.files[WEIGHTS_FILE] == b""
    assert bundle.manifest.scores is None


def test_pack_of_a_text_model_keeps_golden_strings() -> None:
    model = served_models.identity(TensorProto.STRING, ("n",))
    words = np.array([b"one", "zwölf".encode()], dtype=object)
    data = pack(model, ModelFacts("same", "1", "o", "p"), Samples({"x": words}), AUTHOR, training=None)

    bundle = verify_bundle(read_bundle(data), Trust((AUTHOR.public_key,)))

    assert bundle.golden.inputs["x"].tolist() == words.tolist()
    assert bundle.profile.features == {}


def test_pack_of_probabilities_knows_them() -> None:
    bundle = packed(model=models.he_mlp((5, 7, 3), softmax=True))

    assert bundle.manifest.scores == Scores("probabilities", "probabilities")


@pytest.mark.parametrize(
    "samples",
    [
        Samples({"input": np.zeros((0, 5), np.float32)}),
        Samples({}),
        Samples({"input": np.zeros((4, 5), np.float32)}, np.zeros(3, np.int64)),
    ],
)
def test_pack_without_usable_samples_is_refused(samples: Samples) -> None:
    with pytest.raises((BundleError, InvalidTensorError)):
        pack(MODEL, FACTS, samples, AUTHOR, training=None)


def test_pack_of_samples_for_another_model_is_refused() -> None:
    with pytest.raises(InvalidTensorError, match="expected input; got pixels"):
        pack(MODEL, FACTS, Samples({"pixels": SAMPLES.inputs["input"]}), AUTHOR, training=None)


@pytest.mark.parametrize(
    ("defect", "value", "label", "message"),
    [
        ("nan_behind_the_first_batch", np.nan, 0, "input 'input' holds NaN or infinity in row 17"),
        ("infinity", np.inf, 0, "input 'input' holds NaN or infinity in row 17"),
        ("label_of_no_class", 0.0, 3, "label of row 17 is out of range"),
        ("label_of_padding", 0.0, -1, "label of row 17 is out of range"),
    ],
)
def test_pack_of_samples_that_no_device_would_learn_from_is_refused(
    defect: str, value: float, label: int, message: str
) -> None:
    x, y = SAMPLES.inputs["input"].copy(), np.array(SAMPLES.labels)
    x[17, 2], y[17] = value, label
    samples = Samples({"input": x}, y)

    with pytest.raises(DatasetError, match=message):
        pack(MODEL, FACTS, samples, AUTHOR, training=PLAN)


def test_pack_of_a_model_that_is_only_served_may_see_missing_values() -> None:
    x = SAMPLES.inputs["input"].copy()
    x[17, 2] = np.nan

    assert pack(MODEL, FACTS, Samples({"input": x}), AUTHOR, training=None)


def test_pack_writes_down_which_ways_were_chosen_by_measurement() -> None:
    chosen = (("Gemm 4x5 5x7 7: dW", "another"),)

    training = packed(TrainingPlan(batch=4, step=StepOptions(lowerings=chosen))).manifest.training

    assert training is not None
    assert training.lowerings == dict(chosen)


def test_pack_of_garbage_is_refused() -> None:
    with pytest.raises(AutodiffError, match="not a valid ONNX model"):
        pack(b"garbage", FACTS, SAMPLES, AUTHOR, training=None)


def test_pack_with_a_name_that_is_no_file_name_is_refused() -> None:
    with pytest.raises(BundleError, match=r"manifest\.name"):
        pack(MODEL, ModelFacts("../x", "1", "o", "p"), SAMPLES, AUTHOR, training=None)


def test_batch_that_mixes_its_rows_is_seen() -> None:
    from onnx import helper

    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["input", "mean"], ["logits"]),
    ]
    session = load_session(ModelSource(models.classifier(nodes, {}, inputs={"input": ("n", 3)})))
    samples = Samples({"input": np.arange(6, dtype=np.float32).reshape(2, 3)})

    assert batch_mixing(session, samples) == "mixes"


def test_scores_are_found_by_the_number_of_labels() -> None:
    outputs = {"label": np.zeros(2, np.int64), "wide": np.zeros((2, 5), np.float32), "s": np.zeros((2, 3), np.float32)}

    assert find_scores(outputs, ("a", "b", "c")) == Scores("s", "logits")
    assert find_scores(outputs, ()) is None


def test_runtime_bounds_are_those_of_the_distribution() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())

    assert f"onnxruntime>={RUNTIME_MINIMUM},<{RUNTIME_BELOW}" in project["project"]["dependencies"]
