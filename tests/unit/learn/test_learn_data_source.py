"""Folders of samples: read in order, held against the site's own declaration, refused with what is wrong and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from holdfast.errors import DatasetError
from holdfast.learn.data import DataContract, InputContract, LocalDataset
from holdfast.learn.data_contract import read_contract
from holdfast.learn.data_source import count_rows, open_dataset

FLOWERS = DataContract((InputContract("flower", "float32", (2,)),), class_count=2)
NUMBERS = DataContract((InputContract("x", "float32", ()),), class_count=0, target_shape=(1,))
TOML = """
[labels]
column = "species"
names = ["setosa", "virginica"]
[inputs.flower]
columns = ["length", "width"]
minimum = 0.0
maximum = 30.0
"""


def folder(tmp_path: Path, **files: object) -> Path:
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        path = tmp_path / f"{stem}.{suffix}"
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif isinstance(content, dict):
            np.savez(path, **content)
        else:
            np.save(path, content)
    return tmp_path


def part(first: int, count: int) -> dict[str, np.ndarray]:
    rows = np.arange(first, first + count, dtype=np.float32)
    return {"x": np.stack([rows, -rows], axis=1), "y": np.arange(count) % 2}


def same(a: LocalDataset, b: LocalDataset) -> bool:
    return np.array_equal(a.inputs["flower"], b.inputs["flower"]) and np.array_equal(a.labels, b.labels)


def test_folder_of_npz_is_read_in_order_of_names(tmp_path: Path) -> None:
    source = folder(tmp_path, b_npz=part(4, 2), a_npz=part(0, 4))

    dataset = open_dataset(source, FLOWERS)

    np.testing.assert_array_equal(dataset.inputs["flower"][:, 0], np.arange(6))
    assert dataset.class_counts == (3, 3)
    assert count_rows(source) == 6


def test_folder_of_npy_and_of_csv_hold_the_same_samples(tmp_path: Path) -> None:
    (tmp_path / "npy").mkdir()
    (tmp_path / "csv").mkdir()
    arrays = folder(tmp_path / "npy", flower_npy=part(0, 3)["x"], y_npy=np.array([0, 1, 0]))
    lines = "species,width,length\nsetosa,0,0\nvirginica,-1,1\nsetosa,-2,2\n"
    declared = TOML.replace("minimum = 0.0", "minimum = -9")
    text = folder(tmp_path / "csv", contract_toml=declared, a_csv=lines)

    assert same(open_dataset(arrays, FLOWERS), open_dataset(text, FLOWERS))
    assert count_rows(arrays) == count_rows(text) == 3


def test_a_single_csv_file_needs_no_declaration(tmp_path: Path) -> None:
    source = folder(tmp_path, a_csv="﻿length,y,width\n1,0,0.5\n2,1,1e-3\n") / "a.csv"

    dataset = open_dataset(source, FLOWERS)

    np.testing.assert_array_equal(dataset.inputs["flower"], np.array([[1, 0.5], [2, 1e-3]], np.float32))
    assert count_rows(source) == 2


def test_labels_may_be_numbers(tmp_path: Path) -> None:
    source = folder(tmp_path, a_csv="x,y\n1,0.5\n2,-1.5\n") / "a.csv"

    dataset = open_dataset(source, NUMBERS)

    np.testing.assert_array_equal(dataset.labels, np.array([[0.5], [-1.5]], np.float32))
    assert dataset.class_counts == ()
    assert dataset.take(np.array([1])).count == 1


def test_labels_that_are_numbers_must_be_finite(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(2, np.float32), y=np.array([[1], [np.nan]], np.float32))

    with pytest.raises(DatasetError, match="'y' holds NaN or infinity in row 1"):
        open_dataset(tmp_path / "a.npz", NUMBERS)


@pytest.mark.parametrize(
    ("defect", "text", "message"),
    [
        (
            "not_a_number",
            "length,width,y\n1,2,0\n1,abc,1\n",
            r"a\.csv: line 3, column 'width': not a number of float32",
        ),
        ("empty_cell", "length,width,y\n1,,0\n", "line 2, column 'width'"),
        ("short_line", "length,width,y\n1,2,0\n1,2\n", "line 3 has 2 values, the header 3"),
        ("nan", "length,width,y\n1,nan,0\n", "NaN or infinity in row 0"),
        ("label_fraction", "length,width,y\n1,2,0.5\n", "line 2, column 'y': not a number of int64"),
        ("label_out_of_range", "length,width,y\n1,2,7\n", "label of row 0 is out of range"),
        ("no_label_column", "length,width\n1,2\n", "column 'y' is missing"),
        ("too_many_columns", "a,b,c,y\n1,2,3,0\n", "'flower' has 3 columns, expected 2"),
        ("column_twice", "a,a,y\n1,2,0\n", "twice"),
        ("no_rows", "length,width,y\n", "no samples"),
        ("nothing_at_all", "", "column 'y' is missing"),
        ("quote_left_open", 'length,width,y\n1,"2,0\n', "not a CSV file"),
        ("int_overflow", "length,width,y\n1,2,99999999999999999999\n", "line 2, column 'y'"),
    ],
)
def test_csv_is_refused_with_the_place_and_never_a_value(tmp_path: Path, defect: str, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(folder(tmp_path, a_csv=text), FLOWERS)

    assert "abc" not in str(caught.value)
    assert "0.5" not in str(caught.value)


def test_csv_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"l\xe4nge,width,y\n1,2,0\n")

    with pytest.raises(DatasetError, match="UTF-8"):
        open_dataset(tmp_path, FLOWERS)


def test_csv_label_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path, contract_toml=TOML, a_csv="species,length,width\nsetosa,1,1\nrosa,1,1\n")

    with pytest.raises(DatasetError, match="line 3, column 'species': not one of the declared labels"):
        open_dataset(source, FLOWERS)


def test_csv_column_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path, contract_toml=TOML, a_csv="species,length,width,patient\nsetosa,1,1,7\n")

    with pytest.raises(DatasetError, match="column 'patient' is not declared"):
        open_dataset(source, FLOWERS)


def test_the_sites_own_range_is_kept_for_every_kind_of_file(tmp_path: Path) -> None:
    source = folder(tmp_path, contract_toml=TOML, a_npz={"x": np.full((2, 2), -999, np.float32), "y": np.zeros(2, int)})

    with pytest.raises(DatasetError, match=r"a\.npz: input 'flower' is outside \[0\.0, 30\.0\] in row 0"):
        open_dataset(source, FLOWERS)


@pytest.mark.parametrize(
    ("defect", "text", "message"),
    [
        ("not_toml", "= 3", "TOML"),
        ("unknown_key", "[label]\n", "has the key 'label'"),
        ("unknown_input", "[inputs.tree]\n", "has the key 'tree'; allowed are flower"),
        ("other_dtype", '[inputs.flower]\ndtype = "float64"', "the model takes 'float32'"),
        ("other_shape", "[inputs.flower]\nshape = [3]", r"the model takes \[2\]"),
        ("names_too_few", '[labels]\nnames = ["a"]', "has 1 names; the model has 2"),
        ("names_twice", '[labels]\nnames = ["a", "a"]', "different classes"),
        ("names_no_list", '[labels]\nnames = "ab"', "must be a list of texts"),
        ("range_empty", "[inputs.flower]\nminimum = 2\nmaximum = 1", "no value is at least"),
        ("minimum_text", '[inputs.flower]\nminimum = "0"', "must be a number"),
        ("minimum_nan", "[inputs.flower]\nminimum = nan", "must be a number"),
        ("column_missing", '[inputs.flower]\ncolumns = ["q", "width"]', None),
    ],
)
def test_declaration_is_refused(tmp_path: Path, defect: str, text: str, message: str | None) -> None:
    source = folder(tmp_path, contract_toml=text, a_csv="length,width,y\n1,2,0\n")

    with pytest.raises(DatasetError, match=message or "column 'q' of input 'flower' is missing"):
        open_dataset(source, FLOWERS)


def test_declaration_keeps_the_models_own_range(tmp_path: Path) -> None:
    model = DataContract((InputContract("flower", "float32", (2,), minimum=1.0, maximum=5.0),), 2)
    folder(tmp_path, contract_toml=TOML)

    (spec,) = read_contract(tmp_path / "contract.toml", model).data.inputs

    assert (spec.minimum, spec.maximum) == (1.0, 5.0)


@pytest.mark.parametrize(
    ("defect", "files", "message"),
    [
        ("empty", {}, "holds no samples"),
        ("two_kinds", {"a_npz": part(0, 2), "b_csv": "x"}, r"\.csv and \.npz files"),
        ("strange_file", {"a_npz": part(0, 2), "notes_txt": "x"}, "holds 'notes.txt'"),
        ("second_file_bad", {"a_npz": part(0, 2), "b_npz": {"x": np.ones((1, 2))}}, r"b\.npz.*'y' is missing"),
        ("npy_without_labels", {"x_npy": np.ones((2, 2), np.float32)}, "'y' is missing"),
        ("npy_of_objects", {"y_npy": np.array([{}], dtype=object)}, "not a readable npy"),
    ],
)
def test_folder_is_refused(tmp_path: Path, defect: str, files: dict[str, object], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open_dataset(folder(tmp_path, **files), FLOWERS)


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file or folder"):
        open_dataset(tmp_path / "none", FLOWERS)
    with pytest.raises(DatasetError, match="no such file or folder"):
        count_rows(tmp_path / "none")
