"""`holdfast bundle pack | verify | inspect`: parse, call, print."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.cli.command import EXIT_FAILED, EXIT_OK, Command
from holdfast.errors import StateError, UsageError

if TYPE_CHECKING:
    from holdfast.author.pack import TrainingPlan
    from holdfast.author.reference import Samples
    from holdfast.bundle.verify import UnverifiedBundle
    from holdfast.trust.keys import PublicKey

LOSS_NAMES = {"cross_entropy": "softmax_cross_entropy"}  # what people type
TUNE_S = 60.0  # enough for a net of twenty convolutions of some milliseconds each
MAX_SAMPLES_BYTES = 1_073_741_824  # 1 GiB: reference data on an author's machine


def read_bytes(path: Path, what: str, max_bytes: int) -> bytes:
    """A whole file, bounded.

    Raises:
        StateError: it cannot be read or is too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise StateError(f"cannot read the {what} {path}: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise StateError(f"{what} {path} is larger than {max_bytes} bytes")
    return data


def read_keys(paths: Sequence[Path]) -> tuple[PublicKey, ...]:
    """Public keys out of PEM files.

    Raises:
        StateError: a file cannot be read. FormatError, TrustError: it holds no public key of ours.
    """
    from holdfast.trust.keys import MAX_KEY_BYTES, PublicKey

    texts = [read_bytes(path, "public key", MAX_KEY_BYTES).decode("utf-8", "replace") for path in paths]
    return tuple(PublicKey.from_pem(text) for text in texts)


def _pack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="a self-contained ONNX model")
    parser.add_argument("--key", type=Path, required=True, metavar="DIR", help="folder of the author's key")
    parser.add_argument("--samples", type=Path, required=True, metavar="FILE.npz", help="inputs by name, labels as y")
    parser.add_argument("--name", help="name of the model; default: the file's stem")
    parser.add_argument("--version", required=True, help="version of the model")
    parser.add_argument("--owner", required=True, help="who answers for it")
    parser.add_argument("--purpose", required=True, help="what it is meant for")
    parser.add_argument("--labels", default="", metavar="A,B,C", help="names of the classes, in the model's order")
    parser.add_argument("--max-update-norm", type=float, default=0.0, metavar="L2", help="how far rounds may move it")
    add_training_arguments(parser)
    parser.add_argument(
        "--step-graph", type=Path, metavar="FILE.onnx", help="a step or gradient graph made by another tool"
    )
    parser.add_argument("--serve-only", action="store_true", help="no training graphs; the weights never change")
    parser.add_argument(
        "--tune",
        type=float,
        nargs="?",
        const=TUNE_S,
        default=0.0,
        metavar="SECONDS",
        help=f"try other ways to write the step on this machine, for so long (default: {TUNE_S:g}); what is faster "
        "stays, is named in the manifest, and may differ from run to run",
    )
    parser.add_argument("--card", type=Path, metavar="FILE.md", help="a model card instead of the short one made here")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: NAME-VERSION.bundle")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say how a model may be trained."""
    parser.add_argument("--batch", type=int, default=10, help="samples that are computed at once (default: 10)")
    parser.add_argument("--trainable", action="append", metavar="PATTERN", help="parameters that learn; default: all")
    parser.add_argument(
        "--loss",
        default="softmax_cross_entropy",
        metavar="NAME[:SETTING=VALUE]",
        help="softmax_cross_entropy (also cross_entropy), binary_cross_entropy, mse, l1, huber:delta=0.5 ...",
    )
    parser.add_argument(
        "--optimizer", default="sgd", metavar="NAME[:SETTING=VALUE]", help="sgd, momentum, nesterov, adam, adamw ..."
    )
    parser.add_argument("--tied", action="append", default=[], metavar="PATTERN", help="parameters shared on purpose")
    parser.add_argument(
        "--accumulate",
        type=int,
        default=1,
        metavar="K",
        help="batches per step, added up; as packed, for good (default: 1)",
    )
    parser.add_argument(
        "--batch-norm",
        choices=("frozen", "averaged", "local"),
        default="frozen",
        help="its running statistics: as packed, averaged like weights, or kept on the device that learned them, which "
        "then serves the packed ones all the same (default: frozen)",
    )
    parser.add_argument("--dropout", action="store_true", help="drop units in training")
    parser.add_argument(
        "--proximal-mu", type=float, metavar="MU", help="pull towards a round's start (FedProx); a round may change MU"
    )
    parser.add_argument(
        "--clip-norm", type=float, metavar="L2", help="bound of the gradient's norm; a round may change it; 0 = none"
    )


def training_plan(arguments: argparse.Namespace) -> TrainingPlan:
    """What these flags ask for."""
    from holdfast.author.pack import TrainingPlan
    from holdfast.autodiff.build import StepOptions

    for flag, number in (("--batch", arguments.batch), ("--accumulate", arguments.accumulate)):
        if number < 1:
            raise UsageError(f"{flag} must be 1 or more, got {number}")
    for flag, value in (("--proximal-mu", arguments.proximal_mu), ("--clip-norm", arguments.clip_norm)):
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(f"{flag} must be 0 or more, got {value}")
    name, colon, settings = arguments.loss.partition(":")
    return TrainingPlan(
        batch=arguments.batch,
        trainable=tuple(arguments.trainable) if arguments.trainable else "all",
        loss=LOSS_NAMES.get(name, name) + colon + settings,
        optimizer=arguments.optimizer,
        tied=tuple(arguments.tied),
        step=StepOptions(batch_norm=arguments.batch_norm, dropout=arguments.dropout),
        proximal_mu=arguments.proximal_mu,
        gradient_clip=arguments.clip_norm,
        accumulate=arguments.accumulate,
    )


def _pack(arguments: argparse.Namespace) -> int:
    from holdfast.author.pack import ModelFacts, pack
    from holdfast.bundle.documents import MAX_TEXT_CHARS
    from holdfast.bundle.verify import read_bundle
    from holdfast.inference.session import MAX_MODEL_BYTES
    from holdfast.trust.durable import write_atomic
    from holdfast.trust.keystore import KeyStore

    signer = KeyStore(arguments.key).load("author")
    card = read_bytes(arguments.card, "model card", 64 * MAX_TEXT_CHARS).decode("utf-8") if arguments.card else ""
    facts = ModelFacts(
        name=arguments.name or arguments.model.stem,
        version=arguments.version,
        owner=arguments.owner,
        purpose=arguments.purpose,
        labels=tuple(label.strip() for label in arguments.labels.split(",") if label.strip()),
        max_update_norm=arguments.max_update_norm,
        card=card,
    )
    plan = None if arguments.serve_only else training_plan(arguments)
    if arguments.step_graph is not None:
        if plan is None:
            raise UsageError("--serve-only has no training; leave out --step-graph")
        plan = dataclasses.replace(plan, step_graph=_read_step_graph(arguments.step_graph))
    model = read_bytes(arguments.model, "model", MAX_MODEL_BYTES)
    print("building the training graphs, measuring the samples, trying the model ...", file=sys.stderr)
    tuning: dict[str, object] | None = None
    if arguments.tune:
        plan, tuning = _tuned(model, plan, arguments.tune)
    data = pack(model, facts, _read_samples(arguments.samples), signer, training=plan)
    output: Path = arguments.output or Path(f"{facts.name}-{facts.version}.bundle")
    write_atomic(output, data, 0o644)
    digest = read_bundle(data).digest
    if arguments.json:
        found = {"bundle": str(output), "digest": digest, "size_bytes": len(data)}
        print(json.dumps(found if tuning is None else {**found, "tuning": tuning}))
        return EXIT_OK
    print(f"{facts.name} {facts.version} packed and signed: {output} ({len(data)} bytes)")
    print(f"digest {digest}")
    print(f"have another person approve it: holdfast approve {output} --key APPROVER_DIR")
    return EXIT_OK


def _read_step_graph(path: Path) -> bytes:
    from holdfast.autodiff.brought import MAX_STEP_GRAPH_BYTES

    data = read_bytes(path, "step graph", MAX_STEP_GRAPH_BYTES)
    if not data:
        raise UsageError(f"the step graph {path} is empty")
    return data


def _tuned(model: bytes, plan: TrainingPlan | None, seconds: float) -> tuple[TrainingPlan, dict[str, object]]:
    """The plan with what is faster on this machine, and the report of it."""
    from holdfast.author.tune import tune

    if plan is None:
        raise UsageError("--serve-only has no training step; leave out --tune")
    if not 0 < seconds < math.inf:
        raise UsageError(f"--tune must be a number of seconds above 0, got {seconds}")
    print(f"trying ways to write the training step, for up to {seconds:g} s ...", file=sys.stderr)
    made = tune(model, plan, limit_s=seconds)
    for trial in made.trials:
        print(f"  {trial.ratio:.2f} {'kept' if trial.kept else 'left'}  {trial.where}: {trial.way}", file=sys.stderr)
    if made.stopped_early:
        print("  time was up before every way was tried; give --tune more seconds", file=sys.stderr)
    return made.plan, made.to_fields()


def _read_samples(path: Path) -> Samples:
    import io

    import numpy as np

    from holdfast.author.reference import Samples

    data = read_bytes(path, "samples", MAX_SAMPLES_BYTES)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise UsageError(f"samples {path} is not an npz of plain arrays; write it with numpy.savez") from error
    labels = arrays.pop("y", None)
    if labels is None or labels.dtype.kind == "f":  # numbers: what a prediction is right about is not known of them
        return Samples(arrays)
    return Samples(arrays, labels.astype(np.int64))


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="the bundle file")
    parser.add_argument("--author-key", action="append", default=[], type=Path, metavar="FILE", help="public key (PEM)")
    parser.add_argument("--run-key", action="append", default=[], type=Path, metavar="FILE", help="for candidates")
    parser.add_argument("--ancestor", type=Path, metavar="FILE", help="for candidates: the author-signed bundle")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _verify(arguments: argparse.Namespace) -> int:
    from holdfast.bundle.files import WEIGHTS_FILE
    from holdfast.bundle.manifest import Lineage
    from holdfast.bundle.verify import Trust, verify_bundle

    bundle = _read(arguments.bundle)
    if not arguments.author_key:
        return _say(
            arguments, bundle, "whole, NOT authenticated: give --author-key to check who signed it", EXIT_FAILED
        )

    def ancestor_weights(lineage: Lineage) -> bytes:
        if arguments.ancestor is None:
            raise UsageError(f"a candidate is checked against {lineage.ancestor_digest[:16]}; give it with --ancestor")
        return _read(arguments.ancestor).files[WEIGHTS_FILE]

    trust = Trust(read_keys(arguments.author_key), read_keys(arguments.run_key))
    verified = verify_bundle(bundle, trust, ancestor_weights=ancestor_weights)
    verdict = f"trusted: signed by the {verified.signed_by} key"
    if bundle.manifest.lineage is not None:
        limit = bundle.manifest.change_envelope.max_update_norm
        verdict += f", weights moved by {verified.change_norm:.4g} of {limit:.4g} allowed"
    return _say(arguments, bundle, verdict, EXIT_OK)


def _say(arguments: argparse.Namespace, bundle: UnverifiedBundle, verdict: str, code: int) -> int:
    if arguments.json:
        print(json.dumps({"digest": bundle.digest, "verdict": verdict, "trusted": code == EXIT_OK}))
    else:
        print(f"{bundle.manifest.name} {bundle.manifest.version} ({bundle.digest[:16]}): {verdict}")
    return code


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="the bundle file")
    parser.add_argument("--json", action="store_true", help="print the manifest")


def _inspect(arguments: argparse.Namespace) -> int:
    from holdfast.cli.manifest_text import manifest_lines

    bundle = _read(arguments.bundle)
    if arguments.json:
        print(json.dumps({"digest": bundle.digest, "manifest": json.loads(bundle.manifest_bytes)}))
        return EXIT_OK
    print("\n".join(manifest_lines(bundle.manifest, bundle.digest)))
    print("this shows what is in the file; whether to trust it: holdfast bundle verify", file=sys.stderr)
    return EXIT_OK


def _read(path: Path) -> UnverifiedBundle:
    from holdfast.bundle.verify import read_bundle
    from holdfast.wire.limits import MAX_BLOB_BYTES

    return read_bundle(read_bytes(path, "bundle", MAX_BLOB_BYTES))


PACK = Command(
    help="pack a trained model into a signed bundle",
    add_arguments=_pack_arguments,
    run=_pack,
    description="Pack a trained ONNX model: training graphs, golden outputs, profile, manifest, signature.\n\n"
    "example:\n  holdfast bundle pack digits.onnx --version 1 --key author/ --samples reference.npz \\\n"
    "    --labels 0,1,2,3,4,5,6,7,8,9 --owner lab@example.org --purpose 'read digits' --max-update-norm 50",
)
VERIFY = Command(
    help="check a bundle and who signed it",
    add_arguments=_verify_arguments,
    run=_verify,
    description="Check every byte of a bundle, and who signed it. Without a key the exit code is 1.\n\n"
    "example:\n  holdfast bundle verify digits-1.bundle --author-key author/author.pub",
)
INSPECT = Command(
    help="show what is in a bundle",
    add_arguments=_inspect_arguments,
    run=_inspect,
    description="Show the manifest of a bundle. Checks its form, not who signed it.\n\n"
    "example:\n  holdfast bundle inspect digits-1.bundle",
)
