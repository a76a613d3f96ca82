"""What `holdfast bundle inspect` prints: a manifest in lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.bundle.manifest import GradientCheck, Manifest
    from holdfast.bundle.training import Recipe, Training


def manifest_lines(manifest: Manifest, digest: str) -> Iterator[str]:
    """The facts of a manifest, each under a word of at most eight letters."""
    yield f"{manifest.name} {manifest.version}   digest {digest}"
    yield f"owner    {manifest.owner}"
    yield f"purpose  {manifest.purpose}"
    for what, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in tensors:
            shape = ", ".join("?" if size is None else str(size) for size in tensor.shape)
            yield f"{what:8} {tensor.name} {tensor.dtype}[{shape}]"
    learning = sum(parameter.size_bytes for parameter in manifest.parameters if parameter.trainable) // 4
    yield f"weights  {sum(each.size_bytes for each in manifest.parameters) // 4}, of which {learning} may learn"
    yield f"change   at most {manifest.change_envelope.max_update_norm:g} (L2) from the author's weights"
    if manifest.training is None:
        yield "training none: packed to be served"
    else:
        yield from _training_lines(manifest.training)
    if manifest.gradient_check is not None:
        yield _check_line(manifest.gradient_check)
    if manifest.lineage is not None:
        yield f"lineage  run {manifest.lineage.run_id}, ancestor {manifest.lineage.ancestor_digest[:16]}"
    for name in sorted(manifest.files):
        yield f"file     {name}  {manifest.files[name].size_bytes} bytes"


def _training_lines(training: Training) -> Iterator[str]:
    yield f"training loss {_recipe(training.loss)}, optimizer {_recipe(training.optimizer)}"
    steps = f"{training.batch} samples"
    if training.accumulate > 1:
        steps = f"{training.accumulate} batches of {steps}, added up"
    labels = f"{training.classes} classes" if training.classes else "a number"
    if training.label_shape:
        labels = f"{'x'.join(map(str, training.label_shape))} numbers"
    yield f"step     {steps}; labels: {labels}; graph {training.step_graph}"
    extras = [f"normalisation statistics {training.batch_norm}"] if training.batch_norm != "frozen" else []
    extras += ["dropout"] if training.dropout else []
    for what, value in (("pull (FedProx mu)", training.proximal_mu), ("gradient norm", training.gradient_clip)):
        if value is not None:
            extras.append(f"{what} {f'{value:g}' if value else 'if a round says so'}")
    if extras:
        yield f"also     {', '.join(extras)}"
    for where, way in sorted(training.lowerings.items()):
        yield f"tuned    {where}: {way}"


def _recipe(recipe: Recipe) -> str:
    """As it is typed, without settings that are zero or an empty list."""
    settings = (
        (name, "/".join(f"{each:g}" for each in value) if isinstance(value, tuple) else f"{value:g}")
        for name, value in recipe.settings.items()
    )
    text = ",".join(f"{name}={value}" for name, value in settings if value not in ("", "0"))
    return f"{recipe.name}:{text}" if text else recipe.name


def _check_line(check: GradientCheck) -> str:
    return (
        f"checked  gradient of norm {check.gradient_norm:.4g}: off by {check.directional_error:.1e} along "
        f"{check.directions} directions, by {check.reference_error:.1e} from ONNX's evaluator; "
        f"{check.tolerance:g} allowed"
    )
