"""Only an author's signature, or a candidate within its author's envelope, makes a bundle trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import bundles

from holdfast.bundle import files as names
from holdfast.bundle.manifest import ChangeEnvelope, Lineage, Parameter, encode_manifest
from holdfast.bundle.verify import Trust, read_bundle, verify_bundle, write_bundle
from holdfast.errors import BundleError, FormatError, HoldfastError, TrustError
from holdfast.trust.envelope import Signature, sign_envelope, to_json
from holdfast.wire.container import read_container, write_container
from holdfast.wire.messages import APPROVAL_TYPE, MANIFEST_TYPE

KEYS = bundles.make_keys()
TRUST = Trust((KEYS.author.public_key,), (KEYS.run.public_key,))
BUNDLE = bundles.author_bundle(KEYS)
WEIGHTS = bundles.WEIGHT.tobytes()


def ancestor_weights(_: Lineage) -> bytes:
    return WEIGHTS


def rebuilt(data: bytes, change: Callable[[dict[str, bytes]], object]) -> bytes:
    """The same bundle with other files in it, in a container that is whole again."""
    files = read_container(data, names.KIND)
    change(files)
    return write_container(names.KIND, files)


def test_bundle_of_the_author_is_verified() -> None:
    verified = verify_bundle(read_bundle(BUNDLE), TRUST)

    assert verified.signed_by == "author"
    assert verified.author_key_ids == (KEYS.author.public_key.key_id,)
    assert verified.blob_size_bytes == len(BUNDLE)
    assert verified.golden.outputs["y"].tolist() == [[0, 2, 6, 12], [4, 10, 18, 28]]
    assert verified.profile.rows == 3


def test_write_bundle_gives_back_the_same_bytes() -> None:
    bundle = read_bundle(BUNDLE)

    assert write_bundle(bundle.manifest_bytes, bundle.signature, bundle.files) == BUNDLE


def test_bundle_of_a_stranger_is_refused() -> None:
    stranger = bundles.make_keys()

    with pytest.raises(TrustError, match="signed by 0 of the 1 trusted keys"):
        verify_bundle(read_bundle(bundles.author_bundle(stranger)), TRUST)


def test_bundle_signed_by_a_stolen_run_key_alone_is_refused() -> None:
    files = bundles.bundle_files()
    stolen = bundles.signed_bundle(bundles.manifest_of(files), files, KEYS.run)

    with pytest.raises(TrustError, match="signed by 0 of the 1 trusted keys"):
        verify_bundle(read_bundle(stolen), TRUST, ancestor_weights=ancestor_weights)


def test_candidate_within_the_envelope_is_verified() -> None:
    candidate = read_bundle(bundles.candidate_bundle(KEYS, BUNDLE, 0.5))

    verified = verify_bundle(candidate, TRUST, ancestor_weights=ancestor_weights)

    assert verified.signed_by == "run"
    assert verified.change_norm == pytest.approx(1.0)
    assert verified.author_key_ids == (KEYS.author.public_key.key_id,)


def test_candidate_exactly_at_the_envelope_is_verified() -> None:
    candidate = read_bundle(bundles.candidate_bundle(KEYS, BUNDLE, 1.0))

    assert verify_bundle(candidate, TRUST, ancestor_weights=ancestor_weights).change_norm == bundles.MAX_UPDATE_NORM


def test_candidate_beyond_the_envelope_is_refused() -> None:
    candidate = read_bundle(bundles.candidate_bundle(KEYS, BUNDLE, 1.001))

    with pytest.raises(TrustError, match="at most 2 is allowed"):
        verify_bundle(candidate, TRUST, ancestor_weights=ancestor_weights)


def test_candidate_without_its_ancestors_weights_is_refused() -> None:
    with pytest.raises(TrustError, match="fetch it"):
        verify_bundle(read_bundle(bundles.candidate_bundle(KEYS, BUNDLE)), TRUST)


def test_candidate_measured_against_other_weights_is_refused() -> None:
    candidate = read_bundle(bundles.candidate_bundle(KEYS, BUNDLE, 5.0))
    near = (bundles.WEIGHT + np.float32(5)).tobytes()

    with pytest.raises(TrustError, match="not those of the author-signed ancestor"):
        verify_bundle(candidate, TRUST, ancestor_weights=lambda _: near)


def test_candidate_whose_ancestor_is_not_the_authors_is_refused() -> None:
    stranger = bundles.make_keys()
    candidate = bundles.candidate_bundle(KEYS, bundles.author_bundle(stranger))

    with pytest.raises(TrustError, match="no author-signed ancestor"):
        verify_bundle(read_bundle(candidate), TRUST, ancestor_weights=ancestor_weights)


def test_candidate_signed_by_a_stranger_is_refused() -> None:
    candidate = bundles.candidate_bundle(KEYS, BUNDLE, signer=bundles.make_keys().run)

    with pytest.raises(TrustError, match="0 of the 1 trusted keys"):
        verify_bundle(read_bundle(candidate), TRUST, ancestor_weights=ancestor_weights)


def test_candidate_that_its_author_signed_needs_no_ancestor_and_can_be_one() -> None:
    adopted = bundles.candidate_bundle(KEYS, BUNDLE, 7.0, signer=KEYS.author)
    weights = (bundles.WEIGHT + np.float32(7)).tobytes()

    verified = verify_bundle(read_bundle(adopted), TRUST)
    child = verify_bundle(
        read_bundle(bundles.candidate_bundle(KEYS, adopted, 7.5)), TRUST, ancestor_weights=lambda _: weights
    )

    assert (verified.signed_by, verified.change_norm) == ("author", 0.0)
    assert (child.signed_by, child.change_norm) == ("run", pytest.approx(1.0))


def test_candidate_with_a_forged_author_signature_is_refused() -> None:
    candidate = read_bundle(bundles.candidate_bundle(KEYS, BUNDLE))
    forged = Signature(KEYS.author.public_key.key_id, candidate.signature.signatures[0].signature)
    signature = dataclasses.replace(candidate.signature, signatures=(*candidate.signature.signatures, forged))

    with pytest.raises(TrustError, match="does not hold"):
        verify_bundle(dataclasses.replace(candidate, signature=signature), TRUST, ancestor_weights=ancestor_weights)


def test_candidate_of_a_candidate_goes_back_to_the_author() -> None:
    first = bundles.candidate_bundle(KEYS, BUNDLE)
    second = bundles.candidate_bundle(KEYS, first)

    # the first candidate is signed by the run key, so as an "ancestor" it is nothing
    with pytest.raises(TrustError, match="no author-signed ancestor"):
        verify_bundle(read_bundle(second), TRUST, ancestor_weights=ancestor_weights)


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("name", "other"),
        ("labels", ("d", "c", "b", "a")),
        ("owner", "somebody else"),
        ("purpose", "something else"),
        ("change_envelope", ChangeEnvelope(1e9)),
        ("parameters", (Parameter("weight", (2, 2), 0, True),)),
        ("batch_mixing", "mixes"),
    ],
)
def test_candidate_that_changes_what_the_author_fixed_is_refused(changed: str, value: object) -> None:
    candidate = bundles.candidate_bundle(KEYS, BUNDLE, replace_manifest={changed: value})

    with pytest.raises(TrustError, match=f"changed {changed}"):
        verify_bundle(read_bundle(candidate), TRUST, ancestor_weights=ancestor_weights)


@pytest.mark.parametrize("file", [names.MODEL_FILE, names.TRAIN_GRAPH, names.EVALUATE_GRAPH, names.LOSS_GRAPH])
def test_candidate_that_changes_a_graph_is_refused(file: str) -> None:
    candidate = bundles.candidate_bundle(KEYS, BUNDLE, replace_files={file: b"another graph"})

    with pytest.raises(TrustError, match=f"changed the file {file}"):
        verify_bundle(read_bundle(candidate), TRUST, ancestor_weights=ancestor_weights)


def test_candidate_that_changes_a_frozen_parameter_is_refused() -> None:
    files = bundles.bundle_files()
    frozen = dataclasses.replace(bundles.manifest_of(files), parameters=(Parameter("weight", (4,), 0, False),))
    ancestor = bundles.signed_bundle(frozen, files, KEYS.author)
    candidate = bundles.candidate_bundle(KEYS, ancestor, 1e-6, replace_manifest={"parameters": frozen.parameters})

    with pytest.raises(TrustError, match="frozen parameter 'weight'"):
        verify_bundle(read_bundle(candidate), TRUST, ancestor_weights=ancestor_weights)


def test_candidate_with_nan_weights_is_refused() -> None:
    candidate = bundles.candidate_bundle(KEYS, BUNDLE, float("nan"))

    with pytest.raises(TrustError, match="NaN or infinity"):
        verify_bundle(read_bundle(candidate), TRUST, ancestor_weights=ancestor_weights)


def test_candidate_that_names_another_ancestor_is_refused() -> None:
    lineage = Lineage("a" * 64, "b" * 64, "c" * 64, 1, "run-1", 3, 2, 100)
    candidate = bundles.candidate_bundle(KEYS, BUNDLE, replace_manifest={"lineage": lineage})

    with pytest.raises(TrustError, match="names another ancestor"):
        verify_bundle(read_bundle(candidate), TRUST, ancestor_weights=ancestor_weights)


@pytest.mark.parametrize("file", sorted(bundles.bundle_files()))
def test_bundle_with_a_changed_file_in_a_whole_container_is_refused(file: str) -> None:
    changed = rebuilt(BUNDLE, lambda files: files.update({file: files[file] + b"!"}))

    with pytest.raises(BundleError, match=r"its hash differs"):
        read_bundle(changed)


@pytest.mark.parametrize("file", sorted(bundles.bundle_files()))
def test_bundle_that_lacks_a_file_is_refused(file: str) -> None:
    with pytest.raises(BundleError, match="missing in the container"):
        read_bundle(rebuilt(BUNDLE, lambda files: files.pop(file)))


@pytest.mark.parametrize("file", [names.MANIFEST_FILE, names.SIGNATURE_FILE])
def test_bundle_without_manifest_or_signature_is_refused(file: str) -> None:
    with pytest.raises(FormatError):
        read_bundle(rebuilt(BUNDLE, lambda files: files.pop(file)))


def test_bundle_with_one_file_too_many_is_refused() -> None:
    with pytest.raises(BundleError, match="has no place for"):
        read_bundle(rebuilt(BUNDLE, lambda files: files.update({"setup.py": b"import os"})))


def test_bundle_with_the_signature_of_another_manifest_is_refused() -> None:
    other = read_bundle(bundles.author_bundle(KEYS, version="2"))

    with pytest.raises(BundleError, match="over another manifest"):
        read_bundle(rebuilt(BUNDLE, lambda files: files.update({names.SIGNATURE_FILE: to_json(other.signature)})))


def test_bundle_signed_as_another_kind_of_document_is_refused() -> None:
    manifest_bytes = read_bundle(BUNDLE).manifest_bytes
    signature = to_json(sign_envelope(APPROVAL_TYPE, manifest_bytes, KEYS.author))
    replayed = rebuilt(BUNDLE, lambda files: files.update({names.SIGNATURE_FILE: signature}))

    with pytest.raises(TrustError, match=r"expected 'application/vnd.holdfast.manifest"):
        verify_bundle(read_bundle(replayed), TRUST)


def test_bundle_with_a_manifest_signed_again_keeps_its_digest() -> None:
    bundle = read_bundle(BUNDLE)
    again = write_bundle(
        encode_manifest(bundle.manifest), sign_envelope(MANIFEST_TYPE, bundle.manifest_bytes, KEYS.author), bundle.files
    )

    assert read_bundle(again).digest == bundle.digest


@settings(max_examples=200)
@given(st.integers(0, len(BUNDLE) - 1), st.integers(1, 255))
def test_bundle_with_any_byte_changed_is_refused(at: int, flip: int) -> None:
    changed = BUNDLE[:at] + bytes([BUNDLE[at] ^ flip]) + BUNDLE[at + 1 :]

    with pytest.raises(HoldfastError):
        verify_bundle(read_bundle(changed), TRUST)


@given(st.integers(0, len(BUNDLE) - 1))
def test_bundle_cut_off_anywhere_is_refused(end: int) -> None:
    with pytest.raises(FormatError):
        read_bundle(BUNDLE[:end])


@settings(max_examples=100)
@given(st.sampled_from(sorted(read_container(BUNDLE, names.KIND))), st.data())
def test_bundle_rebuilt_around_any_changed_file_is_refused(file: str, data: st.DataObject) -> None:
    content = read_container(BUNDLE, names.KIND)[file]
    at, flip = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    changed = content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]

    with pytest.raises(HoldfastError):
        verify_bundle(read_bundle(rebuilt(BUNDLE, lambda files: files.update({file: changed}))), TRUST)
