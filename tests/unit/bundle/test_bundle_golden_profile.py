"""Golden arrays and the reference profile: one spelling, bounded, nothing pickled."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from holdfast.bundle.golden import MAX_GOLDEN_BYTES, GoldenSet, read_golden, write_golden
from holdfast.bundle.manifest import FeatureEdges, ProfileEdges
from holdfast.bundle.profile import Profile, decode_profile, encode_profile, feature_columns
from holdfast.errors import BundleError, HoldfastError

EDGES = ProfileEdges((FeatureEdges("x", (0.0, 1.0)),), (0.5,))
WORDS = np.array([b"a", "ß".encode()], dtype=object)
PROFILE = Profile(4, {"x": (1, 2, 1)}, (1, 3), {"yes": 3, "no": 1}, {"accuracy": 0.75})


def npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # whatever a case wants
    return buffer.getvalue()


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_side=4), elements=st.floats(-5, 5, width=32)),
    hnp.arrays(np.int64, hnp.array_shapes(max_side=4)),
)
def test_golden_round_trip(x: np.ndarray, y: np.ndarray) -> None:
    data = write_golden(GoldenSet({"x": x}, {"y": y, "words": WORDS}, 0.01, 0.0))

    golden = read_golden(data)

    assert write_golden(golden) == data
    np.testing.assert_array_equal(golden.inputs["x"], x)
    np.testing.assert_array_equal(golden.outputs["y"], y)
    assert golden.outputs["words"].tolist() == WORDS.tolist()
    assert (golden.rtol, golden.atol) == (0.01, 0.0)


@pytest.mark.parametrize(
    "defect",
    ["not_zip", "pickled", "no_tolerance", "wide_tolerance", "foreign_name", "nothing_in_it", "no_outputs"],
)
def test_golden_with_a_defect_is_refused(defect: str) -> None:
    one, tolerance = np.ones(1), np.array([0.1, 0.1])
    objects = np.array([{}], dtype=object)
    data = {
        "not_zip": b"PK garbage",
        "pickled": npz(**{"in/x": objects, "out/y": one, "tolerance": tolerance}),
        "no_tolerance": npz(**{"in/x": one, "out/y": one}),
        "wide_tolerance": npz(**{"in/x": one, "out/y": one, "tolerance": np.array([np.inf, 0])}),
        "foreign_name": npz(**{"in/x": one, "out/y": one, "tolerance": tolerance, "code": one}),
        "nothing_in_it": npz(tolerance=tolerance),
        "no_outputs": npz(**{"in/x": one, "tolerance": tolerance}),
    }[defect]

    with pytest.raises(BundleError):
        read_golden(data)


def test_golden_that_unpacks_to_too_much_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/x.npy", bytes(MAX_GOLDEN_BYTES + 1))

    with pytest.raises(BundleError, match="unpacks to"):
        read_golden(buffer.getvalue())


@given(st.binary(max_size=300))
def test_golden_of_any_bytes_ends_in_an_error(data: bytes) -> None:
    with pytest.raises(HoldfastError):
        read_golden(data)


def test_profile_round_trip() -> None:
    assert decode_profile(encode_profile(PROFILE), EDGES) == PROFILE


@pytest.mark.parametrize(
    "change",
    [
        {"rows": -1},
        {"min": 3},
        {"features": {"x": [1, 2]}},
        {"features": {"x": [1, 2, 1], "y": [1]}},
        {"confidence": [1]},
        {"baseline": {"accuracy": "good"}},
        {"predictions": {"yes": 0.5}},
    ],
)
def test_profile_with_a_defect_is_refused(change: dict[str, object]) -> None:
    document = {**json.loads(encode_profile(PROFILE)), **change}

    with pytest.raises(BundleError):
        decode_profile(json.dumps(document, sort_keys=True, separators=(",", ":")).encode(), EDGES)


def test_feature_columns_name_every_column_of_a_row() -> None:
    columns = feature_columns(
        {
            "pixels": np.arange(4, dtype=np.float32).reshape(2, 1, 2),
            "age": np.array([3, 4]),
            "name": np.array([b"a", b"b"], dtype=object),
        }
    )

    assert {name: column.tolist() for name, column in columns.items()} == {
        "age": [3, 4],
        "pixels[0]": [0, 2],
        "pixels[1]": [1, 3],
    }


def test_feature_columns_of_a_wide_input_are_its_mean_and_spread() -> None:
    columns = feature_columns({"image": np.tile(np.array([[0.0, 2.0]]), (3, 200))})

    assert columns["image.mean"].tolist() == [1, 1, 1]
    assert columns["image.std"].tolist() == [1, 1, 1]
