"""Small bundles, signed by fresh keys: y = weight * x, four numbers in and out; the trainable weight is 1 2 3 4."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tests.fakes import served_models as models

from holdfast.bundle import files as names
from holdfast.bundle.approval import APPROVE, Approval, sign_approval
from holdfast.bundle.golden import GoldenSet, write_golden
from holdfast.bundle.manifest import (
    ChangeEnvelope,
    FeatureEdges,
    FileEntry,
    Lineage,
    Manifest,
    Parameter,
    ProfileEdges,
    Runtime,
    Scores,
    Tensor,
    encode_manifest,
)
from holdfast.bundle.profile import Profile, encode_profile
from holdfast.bundle.training import Training, recipe_named
from holdfast.bundle.verify import UnverifiedBundle, read_bundle
from holdfast.errors import LinkError
from holdfast.models.activation import ActivationTrust
from holdfast.trust.envelope import sign_envelope, to_json
from holdfast.trust.keys import ECDSA_P256, ED25519, PrivateKey
from holdfast.wire.container import write_container
from holdfast.wire.convert import to_bytes
from holdfast.wire.messages import (
    ASSIGNMENT_TYPE,
    MANIFEST_TYPE,
    Assignment,
    AssignmentDelivery,
    FetchRequest,
    FetchResponse,
)

WEIGHT = np.array([1, 2, 3, 4], dtype=np.float32)
MAX_UPDATE_NORM = 2.0
TRAINING = Training(recipe_named("loss", "softmax_cross_entropy"), recipe_named("optimizer", "sgd"), 10, classes=4)


@dataclass(frozen=True)
class Keys:
    """One key of every principal."""

    author: PrivateKey
    approver: PrivateKey
    run: PrivateKey
    assignment: PrivateKey


def make_keys() -> Keys:
    return Keys(
        author=PrivateKey.generate(ECDSA_P256),
        approver=PrivateKey.generate(ED25519),
        run=PrivateKey.generate(ED25519),
        assignment=PrivateKey.generate(ED25519),
    )


def bundle_files(weight: np.ndarray = WEIGHT, *, golden_weight: np.ndarray | None = None) -> dict[str, bytes]:
    """The files of a bundle but manifest and signature. `golden_weight`: the weight the golden outputs pretend."""
    model, _ = models.with_external_weight()
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    golden = GoldenSet({"x": x}, {"y": x * (weight if golden_weight is None else golden_weight)})
    return {
        names.MODEL_FILE: model,
        names.WEIGHTS_FILE: weight.astype("<f4").tobytes(),
        names.TRAIN_GRAPH: b"a training graph",
        names.EVALUATE_GRAPH: b"an evaluation graph",
        names.GOLDEN_FILE: write_golden(golden),
        names.PROFILE_FILE: encode_profile(Profile(3, {"x[0]": (1, 2)}, (3, 0), {"a": 3}, {"accuracy": 0.5})),
        names.CARD_FILE: b"# A card\n",
    }


def manifest_of(files: Mapping[str, bytes], *, name: str = "scale", version: str = "1") -> Manifest:
    """The manifest of these files."""
    return Manifest(
        name=name,
        version=version,
        files={file: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for file, data in files.items()},
        inputs=(Tensor("x", "float32", (None, 4)),),
        outputs=(Tensor("y", "float32", (None, 4)),),
        labels=("a", "b", "c", "d"),
        scores=Scores("y", "logits"),
        runtime=Runtime("1.17", "1.99", 17, 8),
        batch_mixing="independent",
        parameters=(Parameter("weight", (4,), 0, True),),
        training=TRAINING,
        gradient_check=None,
        lineage=None,
        change_envelope=ChangeEnvelope(MAX_UPDATE_NORM),
        owner="someone@example.org",
        purpose="tests",
        profile=ProfileEdges((FeatureEdges("x[0]", (0.5,)),), (0.5,)),
    )


def signed_bundle(manifest: Manifest, files: Mapping[str, bytes], *signers: PrivateKey) -> bytes:
    """A container of these files, whatever is wrong with them."""
    manifest_bytes = encode_manifest(manifest)
    signature = sign_envelope(MANIFEST_TYPE, manifest_bytes, *signers)
    return write_container(
        names.KIND, {**files, names.MANIFEST_FILE: manifest_bytes, names.SIGNATURE_FILE: to_json(signature)}
    )


def author_bundle(keys: Keys, *, version: str = "1", name: str = "scale", **options: np.ndarray) -> bytes:
    """A good bundle signed by the author."""
    files = bundle_files(**options)
    return signed_bundle(manifest_of(files, name=name, version=version), files, keys.author)


def candidate_bundle(
    keys: Keys,
    ancestor: bytes,
    change: float = 0.5,
    *,
    version: str = "2",
    replace_files: Mapping[str, bytes] | None = None,
    replace_manifest: Mapping[str, object] | None = None,
    signer: PrivateKey | None = None,
) -> bytes:
    """A candidate whose weights all moved by `change`; the norm of that is 2 * `change`."""
    parent: UnverifiedBundle = read_bundle(ancestor)
    files = bundle_files(WEIGHT + np.float32(change))
    files[names.ANCESTOR_MANIFEST_FILE] = parent.manifest_bytes
    files[names.ANCESTOR_SIGNATURE_FILE] = to_json(parent.signature)
    files |= replace_files or {}
    lineage = Lineage(parent.digest, parent.digest, parent.blob_sha256, parent.blob_size_bytes, "run-1", 3, 2, 100)
    manifest = dataclasses.replace(manifest_of(files, version=version, name=parent.manifest.name), lineage=lineage)
    manifest = dataclasses.replace(manifest, **(replace_manifest or {}))  # type: ignore[arg-type]  # names of fields
    return signed_bundle(manifest, files, signer or keys.run)


NOW_UTC_NS = 1_790_000_000_000_000_000  # where FakeClock starts
HOUR_NS = 3_600_000_000_000
DEVICE = "device-1"


def approval(
    signer: PrivateKey, bundle: bytes, *, decision: str = APPROVE, expires_utc_ns: int = NOW_UTC_NS + 24 * HOUR_NS
) -> bytes:
    """A person's document about a bundle."""
    digest = read_bundle(bundle).digest
    return sign_approval(Approval(digest, decision, "reviewer", NOW_UTC_NS, expires_utc_ns), signer)


def assignment_of(bundle: bytes, number: int) -> Assignment:
    """An assignment of a bundle to DEVICE."""
    read = read_bundle(bundle)
    return Assignment(
        device_id=DEVICE,
        number=number,
        model=read.manifest.name,
        bundle_digest=read.digest,
        blob_sha256=read.blob_sha256,
        blob_size_bytes=read.blob_size_bytes,
        issued_utc_ns=NOW_UTC_NS,
        expires_utc_ns=NOW_UTC_NS + HOUR_NS,
    )


def delivery(
    keys: Keys, bundle: bytes, number: int, *, approvals: tuple[bytes, ...] | None = None, **changes: object
) -> AssignmentDelivery:
    """A signed assignment with its approvals (default: one by the approver); `changes` are fields of the assignment."""
    assignment = dataclasses.replace(assignment_of(bundle, number), **changes)  # type: ignore[arg-type]  # field names
    documents = (approval(keys.approver, bundle),) if approvals is None else approvals
    return AssignmentDelivery(sign_envelope(ASSIGNMENT_TYPE, to_bytes(assignment), keys.assignment), documents)


def trust_of(keys: Keys) -> ActivationTrust:
    """What DEVICE pinned."""
    return ActivationTrust(
        device_id=DEVICE,
        authors=(keys.author.public_key,),
        approvers=(keys.approver.public_key,),
        run_keys=(keys.run.public_key,),
        assignment_keys=(keys.assignment.public_key,),
    )


class BlobServer:
    """Answers fetches as the coordinator does, in pieces of `piece_bytes` at most."""

    def __init__(self, *blobs: bytes, piece_bytes: int = 1_000) -> None:
        self.blobs = {hashlib.sha256(blob).hexdigest(): blob for blob in blobs}
        self.piece_bytes = piece_bytes
        self.requests: list[FetchRequest] = []

    def __call__(self, request: FetchRequest) -> FetchResponse:
        self.requests.append(request)
        blob = self.blobs.get(request.blob_sha256)
        if blob is None:
            raise LinkError("no such blob")
        end = request.offset + min(request.max_bytes, self.piece_bytes)
        return FetchResponse(len(blob), blob[request.offset : end])
