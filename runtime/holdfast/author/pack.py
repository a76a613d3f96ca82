"""Packs a trained ONNX model into a signed bundle: split the weights off, build the training graphs, measure, check.

Rules: what is signed was checked as a device will check it: the gradients against differences, the bundle's form, and
the model itself in a trial with its golden outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from holdfast.author.gradient import check_of
from holdfast.author.reference import Samples, batch_mixing, find_scores, golden_rows, measure_profile, run_rows
from holdfast.author.rehearsal import refuse_bad_samples, rehearse
from holdfast.autodiff.brought import build_around
from holdfast.autodiff.build import StepOptions, StepPlan, TrainingGraphs, build_graphs, make_plan
from holdfast.autodiff.externalise import SplitModel, split_weights
from holdfast.autodiff.parameters import layout_of
from holdfast.autodiff.reading import parse_model
from holdfast.bundle.files import (
    ACCUMULATE_GRAPH,
    APPLY_GRAPH,
    CARD_FILE,
    EVALUATE_GRAPH,
    GOLDEN_FILE,
    INPUT_GRADIENT_GRAPH,
    LOSS_GRAPH,
    MODEL_FILE,
    PROFILE_FILE,
    TRAIN_GRAPH,
    WEIGHTS_FILE,
)
from holdfast.bundle.golden import GoldenSet, write_golden
from holdfast.bundle.manifest import (
    ChangeEnvelope,
    FileEntry,
    GradientCheck,
    Manifest,
    Parameter,
    Runtime,
    Tensor,
    encode_manifest,
)
from holdfast.bundle.profile import Profile, encode_profile
from holdfast.bundle.training import BROUGHT, BUILT, SOFTMAX_CROSS_ENTROPY, Training, recipe_named
from holdfast.bundle.verify import write_bundle
from holdfast.inference.session import ModelSession, ModelSource, load_session
from holdfast.inference.tensors import TensorSpec
from holdfast.inference.trial import Golden, run_trial
from holdfast.trust.envelope import sign_envelope
from holdfast.trust.keys import Signer
from holdfast.update.layout import FlatLayout
from holdfast.wire.messages import MANIFEST_TYPE

# the versions of ONNX Runtime that this release of Holdfast is installed with
RUNTIME_MINIMUM, RUNTIME_BELOW = "1.31", "1.34"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What an author says of a model. `max_update_norm`: how far federated rounds may move the weights; 0 = not."""

    name: str
    version: str
    owner: str
    purpose: str
    labels: tuple[str, ...] = ()
    max_update_norm: float = 0.0
    card: str = ""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How devices may train it: samples per batch, batches per step (`accumulate`), which parameters, loss, optimizer.

    `trainable` is "all" or shell patterns. `step_graph` is one that another tool made; empty: it is built here.
    Loss and optimizer are names of the registry, with settings behind a colon ("huber:delta=0.5"). `step` says what a
    step does beyond them. proximal_mu, gradient_clip: what a round uses that says nothing else; they give the graph the
    inputs for it.
    """

    batch: int = 10
    trainable: str | tuple[str, ...] = "all"
    loss: str = "softmax_cross_entropy"
    optimizer: str = "sgd"
    tied: tuple[str, ...] = ()
    step: StepOptions = field(default_factory=StepOptions)
    proximal_mu: float | None = None
    gradient_clip: float | None = None
    accumulate: int = 1
    step_graph: bytes = b""

    @property
    def options(self) -> StepOptions:
        """What the graphs are built with."""
        pulls, clips = self.proximal_mu is not None, self.gradient_clip is not None
        return replace(
            self.step,
            proximal=self.step.proximal or pulls,
            clip=self.step.clip or clips,
            accumulate=self.accumulate > 1,
        )


def pack(
    model_bytes: bytes, facts: ModelFacts, samples: Samples, signer: Signer, *, training: TrainingPlan | None
) -> bytes:
    """Make a signed bundle.

    Args:
        model_bytes: a self-contained ONNX model, as trained.
        samples: reference data for golden outputs, bins and baseline; none of its rows but the golden ones get in.
        signer: the author's key.
        training: None for a model that is only served.
    Returns: the bytes of the bundle.
    Raises:
        AutodiffError: no training graphs can be built, or their gradients are wrong.
        BundleError: a fact or the samples are out of bounds.
        ModelError, InvalidTensorError: the model does not run on the samples as it will be served.
        TrainingError, DatasetError: a device would refuse to learn with it.
    """
    contract, graphs = (None, None) if training is None else _planned(model_bytes, training)
    split = split_weights(model_bytes, layout=graphs.layout if graphs else _frozen_layout(model_bytes))
    source = ModelSource(split.skeleton, {WEIGHTS_FILE: split.weights} if split.weights else {})
    session = load_session(source)
    takes = tuple(_tensor(spec) for spec in session.inputs)
    outputs = run_rows(session, samples)
    if contract is not None:
        refuse_bad_samples(samples, takes, contract)
    is_classifier = contract is None or contract.loss.name == SOFTMAX_CROSS_ENTROPY
    scores = find_scores(outputs, facts.labels) if is_classifier else None
    edges, profile = measure_profile(samples, outputs, scores, facts.labels)
    golden = _tried(source, session, samples)
    files = {
        MODEL_FILE: split.skeleton,
        WEIGHTS_FILE: split.weights,
        GOLDEN_FILE: write_golden(golden),
        PROFILE_FILE: encode_profile(profile),
        CARD_FILE: (facts.card or _card(facts, profile)).encode(),
        **(_graph_files(graphs) if graphs else {}),
    }
    manifest = Manifest(
        name=facts.name,
        version=facts.version,
        files=file_entries(files),
        inputs=takes,
        outputs=tuple(_tensor(spec) for spec in session.outputs),
        labels=facts.labels,
        scores=scores,
        runtime=_runtime(model_bytes),
        batch_mixing=batch_mixing(session, samples),
        parameters=_parameters(split.layout),
        training=contract,
        gradient_check=_checked(training, graphs, split, samples),
        lineage=None,
        change_envelope=ChangeEnvelope(float(facts.max_update_norm)),
        owner=facts.owner,
        purpose=facts.purpose,
        profile=edges,
    )
    bundle = _signed(manifest, files, signer)
    if contract is not None:
        rehearse(bundle, samples)
    return bundle


def _tried(source: ModelSource, session: ModelSession, samples: Samples) -> GoldenSet:
    """The answers that devices must give too, and that a process of its own gave."""
    inputs = golden_rows(session, samples)
    golden = GoldenSet(inputs, session.run(inputs))
    run_trial(source, Golden(golden.inputs, golden.outputs, golden.rtol, golden.atol))
    return golden


def _signed(manifest: Manifest, files: Mapping[str, bytes], signer: Signer) -> bytes:
    manifest_bytes = encode_manifest(manifest)
    return write_bundle(manifest_bytes, sign_envelope(MANIFEST_TYPE, manifest_bytes, signer), files)


def file_entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """The manifest's table of these files."""
    return {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}


def build_planned(model_bytes: bytes, training: TrainingPlan) -> TrainingGraphs:
    """The graphs of a plan. Raises: AutodiffError: naming what stands in the way."""
    if training.step_graph:
        return build_around(plan_of(model_bytes, training), training.step_graph, training.loss, training.optimizer)
    return build_graphs(
        model_bytes,
        batch=training.batch,
        trainable=training.trainable,
        loss=training.loss,
        optimizer=training.optimizer,
        tied=training.tied,
        options=training.options,
    )


def plan_of(model_bytes: bytes, training: TrainingPlan) -> StepPlan:
    """What there is to build, whether or not there are gradient rules for it. Raises: AutodiffError."""
    return make_plan(
        model_bytes,
        batch=training.batch,
        trainable=training.trainable,
        loss=training.loss,
        optimizer=training.optimizer,
        tied=training.tied,
        options=training.options,
    )


def _planned(model_bytes: bytes, plan: TrainingPlan) -> tuple[Training, TrainingGraphs]:
    """The contract and the graphs of a plan; bad settings are refused before anything is built."""
    contract = _contract(plan)
    graphs = build_planned(model_bytes, plan)
    names = {entry.name for entry in graphs.layout.entries}
    local = tuple(tensor.name for tensor in graphs.state if tensor.name in names)
    contract = replace(contract, statistics=(*graphs.statistics, *local))
    if graphs.labels.is_float:
        return replace(contract, label_shape=graphs.labels.shape[1:]), graphs
    return replace(contract, classes=graphs.class_count), graphs


def _contract(plan: TrainingPlan) -> Training:
    """The plan as a manifest says it. Raises: BundleError: an unknown loss or optimizer, or a setting out of bounds."""
    options = plan.options
    return Training(
        loss=recipe_named("loss", plan.loss),
        optimizer=recipe_named("optimizer", plan.optimizer),
        batch=plan.batch,
        accumulate=plan.accumulate,
        batch_norm=options.batch_norm,
        dropout=options.dropout,
        proximal_mu=float(plan.proximal_mu or 0.0) if options.proximal else None,
        gradient_clip=float(plan.gradient_clip or 0.0) if options.clip else None,
        step_graph=BROUGHT if plan.step_graph else BUILT,
        lowerings=dict(options.lowerings),
    )


def _checked(
    plan: TrainingPlan | None, graphs: TrainingGraphs | None, split: SplitModel, samples: Samples
) -> GradientCheck | None:
    """The self-check of the gradients; None for a model that is only served."""
    if plan is None or graphs is None:
        return None
    return check_of(graphs, split, samples, is_brought=bool(plan.step_graph))


def _graph_files(graphs: TrainingGraphs) -> dict[str, bytes]:
    files = {TRAIN_GRAPH: graphs.train, EVALUATE_GRAPH: graphs.evaluate, LOSS_GRAPH: graphs.loss}
    if graphs.input_gradient is not None:
        files[INPUT_GRADIENT_GRAPH] = graphs.input_gradient
    if graphs.accumulate is not None and graphs.apply is not None:
        files |= {ACCUMULATE_GRAPH: graphs.accumulate, APPLY_GRAPH: graphs.apply}
    return files


def _frozen_layout(model_bytes: bytes) -> FlatLayout:
    """The layout of a model that is only served: nothing in it may learn."""
    return layout_of(parse_model(model_bytes), ())


def _parameters(layout: FlatLayout) -> tuple[Parameter, ...]:
    return tuple(Parameter(each.name, each.shape, each.offset_bytes, each.trainable) for each in layout.entries)


def _tensor(spec: TensorSpec) -> Tensor:
    return Tensor(spec.name, spec.dtype, spec.shape)


def _runtime(model_bytes: bytes) -> Runtime:
    model = parse_model(model_bytes)
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 1)
    return Runtime(RUNTIME_MINIMUM, RUNTIME_BELOW, opset, model.ir_version)


def _card(facts: ModelFacts, profile: Profile) -> str:
    figures = "".join(f"- {name} on the reference data: {value:.4g}\n" for name, value in profile.baseline.items())
    return (
        f"# {facts.name} {facts.version}\n\n{facts.purpose}\n\n"
        f"- owner: {facts.owner}\n- labels: {', '.join(facts.labels) or 'none'}\n"
        f"- reference rows: {profile.rows}\n{figures}"
    )
