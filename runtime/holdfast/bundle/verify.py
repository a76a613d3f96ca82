"""A bundle's bytes in, a `VerifiedBundle` out: form first (`read_bundle`), then whose it is (`verify_bundle`).

Rules: every file is in the manifest with its hash, and every byte of the container has one spelling; a bundle is
trusted by an author's signature, or, as a candidate, by a run key's signature together with an author-signed ancestor,
which it changes no more than the author allowed. A run key alone makes nothing trusted. This room does no IO: the
ancestor's weights are handed in, and are checked against the author-signed manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from holdfast.bundle.change import check_same_but_weights, check_weight_change
from holdfast.bundle.files import (
    ACCUMULATE_GRAPH,
    ANCESTOR_MANIFEST_FILE,
    ANCESTOR_SIGNATURE_FILE,
    APPLY_GRAPH,
    CARD_FILE,
    EVALUATE_GRAPH,
    GOLDEN_FILE,
    GRAPHS,
    KIND,
    MANIFEST_FILE,
    MODEL_FILE,
    PROFILE_FILE,
    SIGNATURE_FILE,
    TRAIN_GRAPH,
    WEIGHTS_FILE,
)
from holdfast.bundle.golden import GoldenSet, read_golden
from holdfast.bundle.manifest import Lineage, Manifest, decode_manifest, digest_of
from holdfast.bundle.profile import Profile, decode_profile
from holdfast.errors import BundleError, TrustError
from holdfast.trust.envelope import Envelope, Verified, from_json, to_json, verify_envelope
from holdfast.trust.keys import PublicKey
from holdfast.wire.container import ContainerLimits, read_container, write_container
from holdfast.wire.messages import MANIFEST_TYPE

AUTHOR, RUN = "author", "run"

_LIMITS = ContainerLimits(max_files=64)
_REQUIRED = {MODEL_FILE, WEIGHTS_FILE, GOLDEN_FILE, PROFILE_FILE, CARD_FILE}
_ANCESTRY = {ANCESTOR_MANIFEST_FILE, ANCESTOR_SIGNATURE_FILE}


AncestorWeights = Callable[[Lineage], bytes]


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys a bundle may be trusted by."""

    authors: tuple[PublicKey, ...]
    run_keys: tuple[PublicKey, ...] = ()


@dataclass(frozen=True, slots=True)
class UnverifiedBundle:
    """A bundle of the right form: its files are those of its manifest. Nobody has looked at who signed it."""

    manifest: Manifest
    manifest_bytes: bytes
    digest: str
    blob_sha256: str
    blob_size_bytes: int
    signature: Envelope
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """A bundle that may be trusted: signed by whom, and which author's keys it goes back to.

    `change_norm`: L2 norm of its weights against the author's; 0 if the author signed it.
    """

    manifest: Manifest
    manifest_bytes: bytes
    digest: str
    blob_sha256: str
    blob_size_bytes: int
    files: Mapping[str, bytes]
    golden: GoldenSet
    profile: Profile
    signed_by: str
    author_key_ids: tuple[str, ...]
    change_norm: float = 0.0


def write_bundle(manifest_bytes: bytes, signature: Envelope, files: Mapping[str, bytes]) -> bytes:
    """The container of a bundle.

    Raises:
        BundleError: the files are not those of the manifest.
    """
    data = write_container(KIND, {**files, MANIFEST_FILE: manifest_bytes, SIGNATURE_FILE: to_json(signature)})
    read_bundle(data)
    return data


def read_bundle(data: bytes) -> UnverifiedBundle:
    """Check the form of a bundle. It is NOT to be trusted yet.

    Raises:
        FormatError: the container, the manifest or a file is damaged, or they do not belong together.
    """
    files = read_container(data, KIND, limits=_LIMITS)
    manifest_bytes, signature_bytes = files.pop(MANIFEST_FILE, b""), files.pop(SIGNATURE_FILE, b"")
    manifest = decode_manifest(manifest_bytes)
    _check_files(manifest, files)
    envelope = from_json(signature_bytes)
    if envelope.payload != manifest_bytes:
        raise BundleError("the signature is over another manifest than the one in the bundle")
    return UnverifiedBundle(
        manifest=manifest,
        manifest_bytes=manifest_bytes,
        digest=digest_of(manifest_bytes),
        blob_sha256=hashlib.sha256(data).hexdigest(),
        blob_size_bytes=len(data),
        signature=envelope,
        files=files,
    )


def verify_bundle(
    bundle: UnverifiedBundle, trust: Trust, *, ancestor_weights: AncestorWeights | None = None
) -> VerifiedBundle:
    """Check whose bundle it is.

    Args:
        ancestor_weights: gives `weights.bin` of the author-signed ancestor. Called for a run-signed candidate only,
            and only when all signatures hold, so it may fetch.
    Raises:
        TrustError: no trusted key signed it, or a candidate goes beyond what its author allowed.
        FormatError: the ancestor's manifest inside a candidate is damaged.
    """
    signed_with = {signature.key_id for signature in bundle.signature.signatures}
    if bundle.manifest.lineage is None or any(key.key_id in signed_with for key in trust.authors):
        verified = verify_envelope(bundle.signature, MANIFEST_TYPE, trust.authors)
        return _verified(bundle, AUTHOR, verified, 0.0)
    verify_envelope(bundle.signature, MANIFEST_TYPE, trust.run_keys)
    by_author, ancestor = _verify_ancestor(bundle, bundle.manifest.lineage, trust)
    check_same_but_weights(bundle.manifest, ancestor)
    if ancestor_weights is None:
        raise TrustError("a candidate cannot be checked without the weights of its author-signed ancestor; fetch it")
    weights = ancestor_weights(bundle.manifest.lineage)
    if hashlib.sha256(weights).hexdigest() != ancestor.files[WEIGHTS_FILE].sha256:
        raise TrustError("the weights handed in are not those of the author-signed ancestor")
    norm = check_weight_change(ancestor, weights, bundle.files[WEIGHTS_FILE])
    return _verified(bundle, RUN, by_author, norm)


def _verify_ancestor(bundle: UnverifiedBundle, lineage: Lineage, trust: Trust) -> tuple[Verified, Manifest]:
    envelope = from_json(bundle.files[ANCESTOR_SIGNATURE_FILE])
    try:
        by_author = verify_envelope(envelope, MANIFEST_TYPE, trust.authors)
    except TrustError as error:
        raise TrustError(f"candidate {bundle.digest[:16]} has no author-signed ancestor: {error}") from error
    ancestor_bytes = bundle.files[ANCESTOR_MANIFEST_FILE]
    if by_author.payload != ancestor_bytes or digest_of(ancestor_bytes) != lineage.ancestor_digest:
        raise TrustError(f"candidate {bundle.digest[:16]} names another ancestor than the author signed")
    return by_author, decode_manifest(ancestor_bytes)


def _verified(bundle: UnverifiedBundle, signed_by: str, by_author: Verified, change_norm: float) -> VerifiedBundle:
    return VerifiedBundle(
        manifest=bundle.manifest,
        manifest_bytes=bundle.manifest_bytes,
        digest=bundle.digest,
        blob_sha256=bundle.blob_sha256,
        blob_size_bytes=bundle.blob_size_bytes,
        files=bundle.files,
        # parsed only now that they are known to be of somebody trusted
        golden=read_golden(bundle.files[GOLDEN_FILE]),
        profile=decode_profile(bundle.files[PROFILE_FILE], bundle.manifest.profile),
        signed_by=signed_by,
        author_key_ids=by_author.key_ids,
        change_norm=change_norm,
    )


def _check_files(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    allowed = _REQUIRED | set(GRAPHS)
    required = set(_REQUIRED)
    if manifest.training is not None:
        required |= {TRAIN_GRAPH, EVALUATE_GRAPH}
    if manifest.training is not None and manifest.training.accumulate > 1:
        required |= {ACCUMULATE_GRAPH, APPLY_GRAPH}
    if manifest.lineage is not None:
        required |= _ANCESTRY
        allowed |= _ANCESTRY
    for name in sorted(set(files) | set(manifest.files) | required):
        if name not in allowed:
            raise BundleError(f"the bundle holds {name!r}, which a bundle of this kind has no place for")
        entry, content = manifest.files.get(name), files.get(name)
        if entry is None or content is None:
            where = "manifest" if entry is None else "container"
            raise BundleError(f"the file {name!r} is missing in the {where}")
        if len(content) != entry.size_bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(f"the file {name!r} is not the one of the manifest: its hash differs")
