"""The flat layout: packing is exact, and a table that does not describe one contiguous array is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import FormatError
from holdfast.update.layout import FlatLayout, LayoutEntry

SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), max_size=6)


def layout_of(shapes: list[tuple[int, ...]]) -> FlatLayout:
    return FlatLayout.from_shapes((f"p{i}", shape) for i, shape in enumerate(shapes))


@given(SHAPES, st.integers(0, 2**32 - 1))
def test_layout_pack_then_unpack_gives_the_same_tensors(shapes: list[tuple[int, ...]], seed: int) -> None:
    layout = layout_of(shapes)
    rng = np.random.default_rng(seed)
    tensors = {f"p{i}": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}

    flat = layout.pack(tensors)
    again = layout.unpack(flat)

    assert flat.nbytes == layout.size_bytes
    assert list(again) == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


@given(SHAPES, st.data())
def test_layout_fields_round_trip_through_json(shapes: list[tuple[int, ...]], data: st.DataObject) -> None:
    names = [f"p{i}" for i in range(len(shapes))]
    chosen = data.draw(st.sets(st.sampled_from(names))) if names else set()
    layout = FlatLayout.from_shapes(zip(names, shapes, strict=True), trainable=chosen)

    again = FlatLayout.from_fields(json.loads(json.dumps(layout.to_fields())))

    assert again == layout


def test_layout_file_order_and_offsets_are_contiguous() -> None:
    layout = FlatLayout.from_shapes([("w", (2, 3)), ("scale", ()), ("b", (3,))])

    assert [(e.name, e.offset_bytes, e.size_bytes) for e in layout.entries] == [
        ("w", 0, 24),
        ("scale", 24, 4),
        ("b", 28, 12),
    ]
    assert layout.size_bytes == 40


def test_layout_delta_touches_trainable_entries_only() -> None:
    layout = FlatLayout.from_shapes([("body", (2,)), ("head", (3,))], trainable=["head"])
    flat = np.arange(5, dtype=np.float32)

    changed = layout.add_delta(flat, np.array([10, 20, 30], dtype=np.float32))

    assert changed.tolist() == [0, 1, 12, 23, 34]
    assert flat.tolist() == [0, 1, 2, 3, 4]
    assert layout.trainable_part(flat).tolist() == [2, 3, 4]


def test_layout_unpack_gives_views() -> None:
    layout = layout_of([(2,)])
    flat = np.zeros(2, dtype=np.float32)

    layout.unpack(flat)["p0"][1] = 5

    assert flat.tolist() == [0, 5]


ENTRY = {"name": "w", "shape": [2], "dtype": "float32", "offset_bytes": 0, "trainable": True}


@pytest.mark.parametrize(
    ("defect", "fields"),
    [
        ("not_an_object", []),
        ("unknown_top_key", {"entries": [], "more": 1}),
        ("entry_missing_field", {"entries": [{k: v for k, v in ENTRY.items() if k != "dtype"}]}),
        ("entry_unknown_field", {"entries": [{**ENTRY, "note": "x"}]}),
        ("name_not_text", {"entries": [{**ENTRY, "name": 3}]}),
        ("name_empty", {"entries": [{**ENTRY, "name": ""}]}),
        ("float64", {"entries": [{**ENTRY, "dtype": "float64"}]}),
        ("negative_size", {"entries": [{**ENTRY, "shape": [-2]}]}),
        ("zero_size", {"entries": [{**ENTRY, "shape": [0]}]}),
        ("shape_not_integers", {"entries": [{**ENTRY, "shape": [2.0]}]}),
        ("shape_boolean", {"entries": [{**ENTRY, "shape": [True]}]}),
        ("trainable_not_boolean", {"entries": [{**ENTRY, "trainable": 1}]}),
        ("first_offset_not_zero", {"entries": [{**ENTRY, "offset_bytes": 4}]}),
        ("gap", {"entries": [ENTRY, {**ENTRY, "name": "b", "offset_bytes": 12}]}),
        ("overlap", {"entries": [ENTRY, {**ENTRY, "name": "b", "offset_bytes": 4}]}),
        ("name_twice", {"entries": [ENTRY, {**ENTRY, "offset_bytes": 8}]}),
        ("too_large", {"entries": [{**ENTRY, "shape": [2**20, 2**20]}]}),
        ("rank_too_high", {"entries": [{**ENTRY, "shape": [1] * 17}]}),
    ],
)
def test_layout_refuses_a_bad_table(defect: str, fields: object) -> None:
    with pytest.raises(FormatError):
        FlatLayout.from_fields(fields)


@pytest.mark.parametrize(
    ("defect", "tensors"),
    [
        ("missing", {}),
        ("unknown", {"p0": np.zeros(2, np.float32), "q": np.zeros(2, np.float32)}),
        ("dtype", {"p0": np.zeros(2, np.float64)}),
        ("shape", {"p0": np.zeros((2, 1), np.float32)}),
    ],
)
def test_layout_refuses_to_pack(defect: str, tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(FormatError):
        layout_of([(2,)]).pack(tensors)


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\0" * 12, np.array([1, np.nan], "<f4").tobytes()])
def test_layout_refuses_weights_of_wrong_length_or_not_finite(data: bytes) -> None:
    with pytest.raises(FormatError):
        layout_of([(2,)]).weights_from_bytes(data)


def test_layout_refuses_a_delta_of_wrong_length() -> None:
    with pytest.raises(FormatError):
        layout_of([(2,)]).add_delta(np.zeros(2, np.float32), np.zeros(3, np.float32))


def test_layout_entry_names_the_gap() -> None:
    entries = (LayoutEntry("a", (1,), "float32", 0, True), LayoutEntry("b", (1,), "float32", 8, True))

    with pytest.raises(FormatError, match="'b' starts at byte 8, expected 4"):
        FlatLayout(entries)
