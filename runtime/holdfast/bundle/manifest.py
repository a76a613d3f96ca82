"""The manifest: everything a device needs to know of a model before it loads it, with the hash of every file.

Its exact bytes are what is signed, and their SHA-256 (`digest_of`) is the identity of the bundle. Rules: one canonical
JSON spelling; an unknown key is refused, because what is not understood cannot be enforced; every bound is checked
while reading. It checks form only: whose signature it bears is for `verify.py`.

`parameters` is the layout of `weights.bin`: contiguous float32 entries in file order (`holdfast.update.layout` computes
with the same table; the two rooms are siblings, so the conversion happens above them).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from holdfast.bundle.documents import Fields, canonical_json, check_canonical, finite_number, parse_json
from holdfast.bundle.files import WEIGHTS_FILE
from holdfast.bundle.training import AVERAGED, FROZEN, LOCAL, Training, read_training
from holdfast.errors import BundleError
from holdfast.wire.limits import MAX_BLOB_BYTES

SCHEMA = "holdfast/manifest/v1"
MAX_MANIFEST_BYTES = 2_097_152  # 2 MiB: fits, as base64, into the largest signature document that is read
MAX_FILES = 256
MAX_TENSORS = 256
MAX_RANK = 16
MAX_LABELS = 65_536
MAX_PARAMETERS = 16_384  # the largest public models have about 2,000
MAX_FEATURES = 1_024
MAX_EDGES = 64  # 65 bins: more reveal single rows and say nothing more about drift
FLOAT32_BYTES = 4

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "string"),
)
BATCH_INDEPENDENT, BATCH_MIXES, BATCH_UNKNOWN = "independent", "mixes", "unknown"
LOGITS, PROBABILITIES = "logits", "probabilities"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_RUNTIME_VERSION = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}", re.ASCII)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the bundle."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of the model; None in `shape` = any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One weight: float32 of `shape`, starting `offset_bytes` into `weights.bin`. Only trainable ones may change."""

    name: str
    shape: tuple[int, ...]
    offset_bytes: int
    trainable: bool
    dtype: str = "float32"

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * FLOAT32_BYTES


@dataclass(frozen=True, slots=True)
class Runtime:
    """What ONNX Runtime must be: at least `minimum`, below `below` ("1.31"), for this opset and IR version."""

    minimum: str
    below: str
    opset: int
    ir_version: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Which output holds one score per label, and whether they are logits or probabilities."""

    output: str
    kind: str


@dataclass(frozen=True, slots=True)
class GradientCheck:
    """The author's self-check of `graphs/train.onnx`: errors relative to the norm of the whole gradient."""

    directional_error: float
    reference_error: float
    gradient_norm: float
    directions: int
    step: float
    seed: int
    tolerance: float


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a candidate comes from: its parent, the author-signed ancestor, and the run that made it."""

    parent_digest: str
    ancestor_digest: str
    ancestor_blob_sha256: str
    ancestor_blob_size_bytes: int
    run_id: str
    rounds: int
    contributors: int
    sample_count: int


@dataclass(frozen=True, slots=True)
class ChangeEnvelope:
    """How far candidates may go: L2 norm of all of `weights.bin` against the author's; 0 = not at all."""

    max_update_norm: float


@dataclass(frozen=True, slots=True)
class FeatureEdges:
    """Inner bin edges of one feature, strictly rising: n edges make n + 1 bins, the outer ones open."""

    name: str
    edges: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ProfileEdges:
    """The bins over which the reference profile and every device count."""

    features: tuple[FeatureEdges, ...]
    confidence: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The form of a bundle. `files` names everything in it but the manifest itself and its signature."""

    name: str
    version: str
    files: Mapping[str, FileEntry]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    labels: tuple[str, ...]
    scores: Scores | None
    runtime: Runtime
    batch_mixing: str
    parameters: tuple[Parameter, ...]
    training: Training | None
    gradient_check: GradientCheck | None
    lineage: Lineage | None
    change_envelope: ChangeEnvelope
    owner: str
    purpose: str
    profile: ProfileEdges

    def layout_fields(self) -> dict[str, object]:
        """The parameters as `holdfast.update.layout.FlatLayout.from_fields` reads them."""
        return {"entries": [{**dataclasses.asdict(each), "shape": list(each.shape)} for each in self.parameters]}


def encode_manifest(manifest: Manifest) -> bytes:
    """The canonical bytes of a manifest, checked as a reader would check them.

    Raises:
        BundleError: a value out of its bounds.
    """
    data = _spelling(manifest)
    decode_manifest(data)
    return data


def decode_manifest(data: bytes) -> Manifest:
    """Read and check a manifest.

    Raises:
        BundleError: naming the key, what was expected and what came.
    """
    keys = {"schema", *(field.name for field in dataclasses.fields(Manifest))}
    fields = Fields(parse_json(data, "manifest", MAX_MANIFEST_BYTES), keys, "manifest")
    fields.choice("schema", (SCHEMA,))
    manifest = Manifest(
        name=fields.matching("name", NAME, "a name of A-Z a-z 0-9 . _ - with 1 to 128 characters"),
        version=fields.matching("version", NAME, "a version of A-Z a-z 0-9 . _ - with 1 to 128 characters"),
        files=fields.mapping("files", _file_entry, maximum=MAX_FILES),
        inputs=fields.each("inputs", _tensor, maximum=MAX_TENSORS),
        outputs=fields.each("outputs", _tensor, maximum=MAX_TENSORS),
        labels=fields.each("labels", _label, maximum=MAX_LABELS),
        scores=fields.optional("scores", _scores),
        runtime=fields.inner("runtime", _runtime),
        batch_mixing=fields.choice("batch_mixing", (BATCH_INDEPENDENT, BATCH_MIXES, BATCH_UNKNOWN)),
        parameters=fields.each("parameters", _parameter, maximum=MAX_PARAMETERS),
        training=fields.optional("training", read_training),
        gradient_check=fields.optional("gradient_check", _gradient_check),
        lineage=fields.optional("lineage", _lineage),
        change_envelope=fields.inner("change_envelope", _change_envelope),
        owner=fields.text("owner", minimum=1, maximum=256),
        purpose=fields.text("purpose", minimum=1),
        profile=fields.inner("profile", _profile),
    )
    _check_whole(manifest)
    check_canonical(data, _spelling(manifest), "manifest")
    return manifest


def digest_of(manifest_bytes: bytes) -> str:
    """The identity of a bundle: SHA-256 (hex) of its manifest bytes."""
    return hashlib.sha256(manifest_bytes).hexdigest()


def _spelling(manifest: Manifest) -> bytes:
    return canonical_json({"schema": SCHEMA, **dataclasses.asdict(manifest)})


def _keys(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _file_entry(value: object, where: str) -> FileEntry:
    fields = Fields(value, _keys(FileEntry), where)
    return FileEntry(fields.sha256("sha256"), fields.integer("size_bytes"))


def _tensor(value: object, where: str) -> Tensor:
    fields = Fields(value, _keys(Tensor), where)
    name = fields.text("name", minimum=1, maximum=1_024)
    return Tensor(name, fields.choice("dtype", DTYPES), fields.each("shape", _open_size, maximum=MAX_RANK))


def _open_size(value: object, where: str) -> int | None:
    return None if value is None else _size(value, where)


def _size(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 2**40:
        raise BundleError(f"{where} must be a size from 1 on, got {repr(value)[:100]}")
    return value


def _label(value: object, where: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 256 or not value.isprintable():
        raise BundleError(f"{where} must be a label of 1 to 256 printable characters")
    return value


def _scores(value: object, where: str) -> Scores:
    fields = Fields(value, _keys(Scores), where)
    return Scores(fields.text("output", minimum=1), fields.choice("kind", (LOGITS, PROBABILITIES)))


def _runtime(value: object, where: str) -> Runtime:
    fields = Fields(value, _keys(Runtime), where)
    return Runtime(
        minimum=fields.matching("minimum", _RUNTIME_VERSION, "a version like 1.31"),
        below=fields.matching("below", _RUNTIME_VERSION, "a version like 1.34"),
        opset=fields.integer("opset", minimum=1, maximum=1_000),
        ir_version=fields.integer("ir_version", minimum=1, maximum=1_000),
    )


def _parameter(value: object, where: str) -> Parameter:
    fields = Fields(value, _keys(Parameter), where)
    return Parameter(
        name=fields.text("name", minimum=1, maximum=1_024),
        shape=fields.each("shape", _size, maximum=MAX_RANK),
        offset_bytes=fields.integer("offset_bytes"),
        trainable=fields.boolean("trainable"),
        dtype=fields.choice("dtype", ("float32",)),
    )


def _gradient_check(value: object, where: str) -> GradientCheck:
    fields = Fields(value, _keys(GradientCheck), where)
    return GradientCheck(
        directional_error=fields.number("directional_error"),
        reference_error=fields.number("reference_error"),
        gradient_norm=fields.number("gradient_norm"),
        directions=fields.integer("directions"),
        step=fields.number("step"),
        seed=fields.integer("seed"),
        tolerance=fields.number("tolerance"),
    )


def _lineage(value: object, where: str) -> Lineage:
    fields = Fields(value, _keys(Lineage), where)
    return Lineage(
        parent_digest=fields.sha256("parent_digest"),
        ancestor_digest=fields.sha256("ancestor_digest"),
        ancestor_blob_sha256=fields.sha256("ancestor_blob_sha256"),
        ancestor_blob_size_bytes=fields.integer("ancestor_blob_size_bytes", minimum=1, maximum=MAX_BLOB_BYTES),
        run_id=fields.text("run_id", minimum=1, maximum=256),
        rounds=fields.integer("rounds", minimum=1),
        contributors=fields.integer("contributors", minimum=1),
        sample_count=fields.integer("sample_count"),
    )


def _change_envelope(value: object, where: str) -> ChangeEnvelope:
    return ChangeEnvelope(Fields(value, _keys(ChangeEnvelope), where).number("max_update_norm"))


def _profile(value: object, where: str) -> ProfileEdges:
    fields = Fields(value, _keys(ProfileEdges), where)
    features = fields.each("features", _feature_edges, maximum=MAX_FEATURES)
    return ProfileEdges(features, _rising(fields, "confidence"))


def _feature_edges(value: object, where: str) -> FeatureEdges:
    fields = Fields(value, _keys(FeatureEdges), where)
    return FeatureEdges(fields.text("name", minimum=1, maximum=1_024), _rising(fields, "edges"))


def _rising(fields: Fields, key: str) -> tuple[float, ...]:
    edges = fields.each(key, finite_number, maximum=MAX_EDGES)
    if any(left >= right for left, right in pairwise(edges)):
        raise BundleError(f"{fields.where}.{key} must rise strictly")
    return edges


def _check_whole(manifest: Manifest) -> None:
    """What holds between fields."""
    for what, names in (
        ("input", [tensor.name for tensor in manifest.inputs]),
        ("output", [tensor.name for tensor in manifest.outputs]),
        ("parameter", [parameter.name for parameter in manifest.parameters]),
        ("feature", [feature.name for feature in manifest.profile.features]),
        ("label", list(manifest.labels)),
    ):
        if len(set(names)) != len(names):
            raise BundleError(f"manifest names an {what} twice; names must be unique")
    offset = 0
    for parameter in manifest.parameters:
        if parameter.offset_bytes != offset:
            raise BundleError(f"parameter {parameter.name!r} starts at {parameter.offset_bytes}, expected {offset}")
        offset += parameter.size_bytes
    weights = manifest.files.get(WEIGHTS_FILE)
    if weights is not None and weights.size_bytes != offset:
        raise BundleError(f"weights.bin has {weights.size_bytes} bytes, its parameters need {offset}")
    if manifest.scores is not None and manifest.scores.output not in {tensor.name for tensor in manifest.outputs}:
        raise BundleError(f"manifest.scores.output {manifest.scores.output!r} is not an output of the model")
    learning = {parameter.name for parameter in manifest.parameters if parameter.trainable}
    if manifest.training is None and learning:
        raise BundleError("manifest has trainable parameters but no training contract")
    if manifest.training is not None:
        _check_statistics(manifest.training, {parameter.name for parameter in manifest.parameters}, learning)


def _check_statistics(training: Training, names: set[str], learning: set[str]) -> None:
    allowed = {FROZEN: set[str](), AVERAGED: learning, LOCAL: names - learning}[training.batch_norm]
    strange = sorted(set(training.statistics) - allowed)
    if strange:
        raise BundleError(
            f"manifest.training.statistics names {strange[0]!r}, which with batch_norm {training.batch_norm} it may not"
        )
