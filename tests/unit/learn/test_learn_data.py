"""Local samples: what keeps the contract is read as it is, what does not is refused with what and where."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import DatasetError
from holdfast.learn.data import DataContract, InputContract, LocalDataset
from holdfast.learn.data_source import open_dataset

CONTRACT = DataContract((InputContract("input", "float32", (3,), minimum=0.0, maximum=16.0),), class_count=4)


def good(count: int = 6) -> dict[str, np.ndarray]:
    return {"x": np.ones((count, 3), np.float32), "y": np.arange(count) % 4}


def write(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


@pytest.mark.parametrize("name", ["x", "input"])
def test_dataset_reads_a_file_and_counts_classes(tmp_path: Path, name: str) -> None:
    arrays = good()
    arrays[name] = arrays.pop("x")

    dataset = open_dataset(write(tmp_path, arrays), CONTRACT)

    assert dataset.count == 6
    assert dataset.class_counts == (2, 2, 1, 1)
    np.testing.assert_array_equal(dataset.inputs["input"], np.ones((6, 3)))
    assert dataset.labels.dtype == np.int64


def test_dataset_takes_several_inputs_by_name(tmp_path: Path) -> None:
    contract = DataContract((InputContract("a", "float32", ()), InputContract("b", "int64", (2,))), 2)
    arrays = {"a": np.zeros(1, np.float32), "b": np.zeros((1, 2), np.int64), "y": np.zeros(1, np.int32)}

    assert open_dataset(write(tmp_path, arrays), contract).count == 1


def with_change(name: str, row: int, value: float) -> dict[str, np.ndarray]:
    arrays = good()
    arrays[name][row] = value
    return arrays


@pytest.mark.parametrize(
    ("defect", "arrays", "message"),
    [
        ("nan", with_change("x", 2, np.nan), r"'input' holds NaN or infinity in row 2 \(1 such rows\)"),
        ("infinity", with_change("x", 5, -np.inf), "NaN or infinity in row 5"),
        ("above_range", with_change("x", 1, 16.5), r"outside \[0.0, 16.0\] in row 1"),
        ("below_range", with_change("x", 3, -0.1), "outside .* in row 3"),
        ("label_too_large", with_change("y", 4, 4), "label of row 4 is out of range .* expected 0 to 3"),
        ("label_negative", with_change("y", 0, -1), "label of row 0"),
        ("labels_float", {**good(), "y": np.zeros(6)}, "labels must be integers"),
        ("labels_two_axes", {**good(), "y": np.zeros((6, 1), int)}, "labels must be integers of shape"),
        ("empty", good(0), "no samples"),
        ("dtype", {**good(), "x": np.ones((6, 3))}, "is float64, expected float32"),
        ("shape", {**good(), "x": np.ones((6, 4), np.float32)}, r"shape \[6, 4\], expected \[6, 3\]"),
        ("counts_differ", {**good(), "x": np.ones((5, 3), np.float32)}, r"shape \[5, 3\], expected \[6, 3\]"),
        ("input_missing", {"y": np.zeros(6, int)}, "'input' is missing; expected x, y"),
        ("labels_missing", {"x": np.ones((6, 3), np.float32)}, "'y' is missing"),
        ("array_not_declared", {**good(), "names": np.zeros(6)}, "'names' is not declared"),
    ],
)
def test_dataset_refuses(tmp_path: Path, defect: str, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DatasetError, match=message) as raised:
        open_dataset(write(tmp_path, arrays), CONTRACT)

    assert "data.npz" in str(raised.value)


def test_dataset_messages_hold_no_sample_values(tmp_path: Path) -> None:
    arrays = with_change("x", 1, 31337.25)

    with pytest.raises(DatasetError) as raised:
        open_dataset(write(tmp_path, arrays), CONTRACT)

    assert "31337" not in str(raised.value)


def test_dataset_refuses_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        open_dataset(tmp_path / "none.npz", CONTRACT)


def test_dataset_refuses_python_objects(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, allow_pickle=True, x=np.array([{"a": 1}], dtype=object), y=np.zeros(1, int))

    with pytest.raises(DatasetError, match="plain arrays"):
        open_dataset(path, CONTRACT)


def test_dataset_refuses_a_file_that_would_unpack_beyond_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "many.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(65):
            archive.writestr(f"a{index}.npy", b"")

    with pytest.raises(DatasetError, match="at most 64 arrays"):
        open_dataset(path, CONTRACT)


@given(st.data())
def test_dataset_of_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **good())
    raw = bytearray(buffer.getvalue())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "data.npz"
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))

    try:
        dataset = open_dataset(path, CONTRACT)
    except DatasetError:
        return

    assert dataset.count == 6


@given(st.integers(1, 50), st.floats(0, 0.99), st.integers(0, 2**31))
def test_split_is_a_partition_and_repeats_itself(count: int, share: float, seed: int) -> None:
    arrays = {"input": np.zeros((count, 3), np.float32), "y": np.zeros(count, int)}
    arrays["input"][:, 0] = np.arange(count) / 50
    dataset = LocalDataset.from_arrays(arrays, CONTRACT)

    train, held = dataset.split(share, seed)
    again, _ = dataset.split(share, seed)

    rows = np.concatenate([train.inputs["input"][:, 0], held.inputs["input"][:, 0]])
    np.testing.assert_array_equal(np.sort(rows), arrays["input"][:, 0])
    np.testing.assert_array_equal(train.inputs["input"], again.inputs["input"])
    assert train.count >= 1


@pytest.mark.parametrize("share", [-0.1, 1.0, np.nan])
def test_split_refuses_a_share_out_of_range(share: float) -> None:
    dataset = LocalDataset.from_arrays({"input": good()["x"], "y": good()["y"]}, CONTRACT)

    with pytest.raises(DatasetError, match="share"):
        dataset.split(share, 0)
