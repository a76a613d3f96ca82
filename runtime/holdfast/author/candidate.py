"""A candidate: the author's model with the weights of a federated run.

Rules: model and graphs keep every byte; only weights, golden outputs (run again with these weights), profile, card,
version and lineage are new, and the change stays inside the author's envelope: what devices will check is checked here
first. Needs neither `onnx` nor the author's key; the run key signs, and an author-signed ancestor travels along.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast.bundle.change import check_same_but_weights, check_weight_change
from holdfast.bundle.files import (
    ANCESTOR_MANIFEST_FILE,
    ANCESTOR_SIGNATURE_FILE,
    CARD_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    PROFILE_FILE,
    WEIGHTS_FILE,
)
from holdfast.bundle.golden import GoldenSet, read_golden, write_golden
from holdfast.bundle.manifest import FileEntry, Lineage, encode_manifest
from holdfast.bundle.profile import Profile, decode_profile, encode_profile
from holdfast.bundle.verify import UnverifiedBundle, read_bundle, write_bundle
from holdfast.errors import BundleError
from holdfast.inference.session import ModelSource, load_session
from holdfast.trust.envelope import sign_envelope, to_json
from holdfast.trust.keys import Signer
from holdfast.wire.messages import MANIFEST_TYPE


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The run that made the weights. `baseline`: figures measured on the devices, such as accuracy."""

    run_id: str
    rounds: int
    contributors: int
    sample_count: int
    baseline: Mapping[str, float] = field(default_factory=dict)


def derive_candidate(
    parent: bytes, weights: bytes, *, version: str, run: RunFacts, signer: Signer, ancestor: bytes | None = None
) -> bytes:
    """Make a candidate bundle.

    Args:
        parent: the bundle that the run started from; verified by the caller.
        weights: the new `weights.bin`, whole.
        ancestor: the author-signed bundle; needed where the parent is itself a candidate.
        signer: the run key.
    Raises:
        TrustError: the weights change more than the author allows. BundleError: the parts do not belong together.
        ModelError, InferenceError: the model cannot be run with these weights.
    """
    before = read_bundle(parent)
    author = _ancestor(before, parent if ancestor is None else ancestor)
    check_weight_change(author.manifest, author.files[WEIGHTS_FILE], weights)
    files = {
        **before.files,
        WEIGHTS_FILE: weights,
        GOLDEN_FILE: write_golden(_golden(before, weights)),
        PROFILE_FILE: encode_profile(_profile(before, run)),
        CARD_FILE: _card(author, version, run).encode(),
        ANCESTOR_MANIFEST_FILE: author.manifest_bytes,
        ANCESTOR_SIGNATURE_FILE: to_json(author.signature),
    }
    manifest = dataclasses.replace(
        before.manifest,
        version=version,
        files={name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()},
        lineage=Lineage(
            parent_digest=before.digest,
            ancestor_digest=author.digest,
            ancestor_blob_sha256=author.blob_sha256,
            ancestor_blob_size_bytes=author.blob_size_bytes,
            run_id=run.run_id,
            rounds=run.rounds,
            contributors=run.contributors,
            sample_count=run.sample_count,
        ),
    )
    check_same_but_weights(manifest, author.manifest)
    manifest_bytes = encode_manifest(manifest)
    return write_bundle(manifest_bytes, sign_envelope(MANIFEST_TYPE, manifest_bytes, signer), files)


def _ancestor(parent: UnverifiedBundle, container: bytes) -> UnverifiedBundle:
    author = read_bundle(container)
    lineage = parent.manifest.lineage
    expected = parent.digest if lineage is None else lineage.ancestor_digest
    if author.digest != expected:
        raise BundleError(f"bundle {author.digest[:16]} is not the author-signed ancestor, which is {expected[:16]}")
    return author


def _golden(parent: UnverifiedBundle, weights: bytes) -> GoldenSet:
    old = read_golden(parent.files[GOLDEN_FILE])
    session = load_session(ModelSource(parent.files[MODEL_FILE], {WEIGHTS_FILE: weights} if weights else {}))
    return GoldenSet(old.inputs, session.run(old.inputs), old.rtol, old.atol)


def _profile(parent: UnverifiedBundle, run: RunFacts) -> Profile:
    """The author's bins of the inputs; how the old weights scored says nothing about the new ones."""
    old = decode_profile(parent.files[PROFILE_FILE], parent.manifest.profile)
    return Profile(old.rows, old.features, baseline=dict(run.baseline))


def _card(author: UnverifiedBundle, version: str, run: RunFacts) -> str:
    figures = "".join(f"- {name} on the devices: {value:.4g}\n" for name, value in run.baseline.items())
    text = author.files[CARD_FILE].decode("utf-8", "replace")
    return (
        f"{text}\n## Version {version}\n\nMade by the federated run {run.run_id} from version {author.manifest.version}"
        f" as its author signed it.\n\n- rounds: {run.rounds}\n- contributors: {run.contributors}\n"
        f"- samples: {run.sample_count}\n{figures}"
    )
