"""The manifest has one spelling, and what is not understood is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import bundles

from holdfast.bundle.manifest import (
    ChangeEnvelope,
    GradientCheck,
    Lineage,
    Manifest,
    Parameter,
    decode_manifest,
    digest_of,
    encode_manifest,
)
from holdfast.errors import BundleError, HoldfastError
from holdfast.update.layout import FlatLayout

WHOLE: Manifest = dataclasses.replace(
    bundles.manifest_of(bundles.bundle_files()),
    gradient_check=GradientCheck(1e-9, 1e-7, 2.5, 4, 1e-5, 0, 1e-4),
    lineage=Lineage("a" * 64, "b" * 64, "c" * 64, 1, "run-1", 3, 2, 100),
)


def test_manifest_round_trip_gives_the_same_value_and_bytes() -> None:
    data = encode_manifest(WHOLE)

    assert decode_manifest(data) == WHOLE
    assert encode_manifest(decode_manifest(data)) == data
    assert len(digest_of(data)) == 64


def test_manifest_parameters_are_a_flat_layout() -> None:
    layout = FlatLayout.from_fields(WHOLE.layout_fields())

    assert layout.size_bytes == WHOLE.files["weights.bin"].size_bytes
    assert [entry.name for entry in layout.trainable] == ["weight"]


def test_manifest_takes_text_beyond_ascii() -> None:
    manifest = dataclasses.replace(WHOLE, owner="Käthe", labels=("größer", "数", "c", "d"))

    assert decode_manifest(encode_manifest(manifest)) == manifest


@pytest.mark.parametrize(
    ("defect", "change"),
    [
        ("unknown_key", {"colour": "red"}),
        ("newer_schema", {"schema": "holdfast/manifest/v2"}),
        ("name_with_slash", {"name": "a/b"}),
        ("name_is_dots", {"name": ".."}),
        ("empty_owner", {"owner": ""}),
        ("version_not_text", {"version": 1}),
        ("hidden_characters", {"purpose": "sort mail\u202eliam tros"}),
        ("integer_norm", {"change_envelope": {"max_update_norm": 2}}),
        ("negative_norm", {"change_envelope": {"max_update_norm": -2.0}}),
        ("huge_norm", {"change_envelope": {"max_update_norm": 1e300}}),
        ("unknown_dtype", {"inputs": [{"name": "x", "dtype": "float8", "shape": [1]}]}),
        ("zero_size", {"inputs": [{"name": "x", "dtype": "float32", "shape": [0]}]}),
        ("input_twice", {"inputs": [{"name": "x", "dtype": "bool", "shape": []}] * 2}),
        ("scores_of_nothing", {"scores": {"output": "z", "kind": "logits"}}),
        ("edges_fall", {"profile": {"features": [], "confidence": [0.5, 0.4]}}),
        ("trainable_without_training", {"training": None}),
        ("files_not_object", {"files": []}),
        ("digest_in_capitals", {"files": {"model.onnx": {"sha256": "A" * 64, "size_bytes": 1}}}),
    ],
)
def test_manifest_with_a_defect_is_refused(defect: str, change: dict[str, object]) -> None:
    document = {**json.loads(encode_manifest(WHOLE)), **change}
    data = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    with pytest.raises(BundleError):
        decode_manifest(data)


def test_manifest_names_the_unknown_key() -> None:
    document = {**json.loads(encode_manifest(WHOLE)), "colour": "red"}

    with pytest.raises(BundleError, match="unknown key 'colour'"):
        decode_manifest(json.dumps(document).encode())


@pytest.mark.parametrize("defect", ["white_space", "unsorted", "key_twice", "escaped", "nan"])
def test_manifest_in_another_spelling_is_refused(defect: str) -> None:
    data = encode_manifest(WHOLE)
    other = {
        "white_space": data + b"\n",
        "unsorted": b'{"version":"1",' + data.replace(b',"version":"1"', b"")[1:],
        "key_twice": data[:-1] + b',"version":"1"}',
        "escaped": data.replace(b'"owner":"s', b'"owner":"\\u0073'),
        "nan": data.replace(b'"max_update_norm":2.0', b'"max_update_norm":NaN'),
    }[defect]
    assert other != data

    with pytest.raises(BundleError):
        decode_manifest(other)


def test_manifest_whose_parameters_leave_a_gap_is_refused() -> None:
    gap = dataclasses.replace(WHOLE, parameters=(Parameter("weight", (4,), 4, True),))

    with pytest.raises(BundleError, match="starts at 4, expected 0"):
        encode_manifest(gap)


def test_manifest_whose_weights_have_another_size_is_refused() -> None:
    short = dataclasses.replace(WHOLE, parameters=(Parameter("weight", (3,), 0, True),))

    with pytest.raises(BundleError, match="need 12"):
        encode_manifest(short)


@given(st.binary(max_size=400))
def test_manifest_of_any_bytes_ends_in_an_error(data: bytes) -> None:
    with pytest.raises(HoldfastError):
        decode_manifest(data)


@given(st.data())
def test_manifest_with_any_byte_changed_is_another_manifest_or_an_error(data: st.DataObject) -> None:
    whole = encode_manifest(WHOLE)
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]

    try:
        other = decode_manifest(changed)
    except HoldfastError:
        return
    assert other != WHOLE
    assert digest_of(changed) != digest_of(whole)


@given(st.floats(0, 1e30), st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=50))
def test_manifest_round_trip_of_any_values(norm: float, owner: str) -> None:
    manifest = dataclasses.replace(WHOLE, change_envelope=ChangeEnvelope(norm), owner=owner)

    assert decode_manifest(encode_manifest(manifest)) == manifest
