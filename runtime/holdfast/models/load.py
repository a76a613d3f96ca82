"""From a verified bundle to something that serves: its source, its golden request, its session once warm."""

from __future__ import annotations

import onnxruntime

from holdfast.bundle.files import MODEL_FILE, WEIGHTS_FILE
from holdfast.bundle.golden import GoldenSet
from holdfast.bundle.manifest import Manifest, Runtime, Tensor
from holdfast.bundle.verify import VerifiedBundle
from holdfast.errors import ModelError
from holdfast.inference.graph_cache import GraphCache
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSession, ModelSource, SessionOptions
from holdfast.inference.tensors import TensorSpec, shape_text
from holdfast.inference.trial import Golden

WARM_RUNS = 2  # the first run of a session plans its memory; the second shows that it can run again


def source_of(bundle: VerifiedBundle) -> ModelSource:
    """The model of a bundle, its weights beside it as external data."""
    external = {WEIGHTS_FILE: bundle.files[WEIGHTS_FILE]} if bundle.manifest.parameters else {}
    return ModelSource(bundle.files[MODEL_FILE], external)


def golden_of(golden: GoldenSet) -> Golden:
    """Golden arrays as a trial takes them."""
    return Golden(golden.inputs, golden.outputs, golden.rtol, golden.atol)


def warm_session(bundle: VerifiedBundle, options: SessionOptions, cache: GraphCache | None = None) -> ModelSession:
    """Load a bundle that passed its trial, measure it, and run it on its golden inputs.

    Args:
        cache: graphs optimised before; None = optimise anew.
    Raises:
        ModelError: it cannot be loaded here.
        RequestError: it cannot be run.
    """
    check_runtime(bundle.manifest.runtime)
    session = prepare_session(source_of(bundle), options, cache=cache).labelled(bundle.manifest.labels)
    check_signature(bundle.manifest, session.inputs, session.outputs)
    for _ in range(WARM_RUNS):
        session.run(bundle.golden.inputs)
    return session


def check_runtime(runtime: Runtime, version: str = str(onnxruntime.__version__)) -> None:
    """Raise ModelError unless ONNX Runtime `version` (default: the one here) lies in the manifest's bounds."""
    have = _numbers(version)
    if not _numbers(runtime.minimum) <= have < _numbers(runtime.below):
        raise ModelError(f"the bundle needs onnxruntime >= {runtime.minimum}, < {runtime.below}; here is {version}")


def check_signature(manifest: Manifest, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Raise ModelError unless the model declares exactly the inputs and outputs that the manifest promises."""
    for what, promised, found in (("inputs", manifest.inputs, inputs), ("outputs", manifest.outputs, outputs)):
        if _by_name(promised) != _by_name(found):
            raise ModelError(f"the model's {what} are {_text(found)}, its manifest promises {_text(promised)}")


def _by_name(specs: tuple[Tensor, ...] | tuple[TensorSpec, ...]) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    return {spec.name: (spec.dtype, spec.shape) for spec in specs}


def _text(specs: tuple[Tensor, ...] | tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype}{shape_text(spec.shape)}" for spec in specs)


def _numbers(version: str) -> tuple[int, int]:
    major, minor, *_ = (*version.split("."), "0")
    return int(major), int(minor)
