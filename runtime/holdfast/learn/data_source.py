"""Where local samples come from: one file, or a folder of files, checked against the contract before anything learns.

    FILE.npz     an array per input of the model, and the labels `y`
    FILE.csv     a header and a line per sample (see `data_csv.py`)
    FOLDER       npz files, or CSV files, or npy files (`<input>.npy` and `y.npy`), one kind only, and perhaps a
                 `contract.toml` (see `data_contract.py`). Several npz or CSV files are read in order of their names.

A model with a single input may call its array `x`. The first axis of every array is the sample. Nothing is skipped: a
file of another kind in the folder is refused, because it may be the samples that somebody meant.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from holdfast.errors import DatasetError
from holdfast.learn.data import LABELS_NAME, SINGLE_INPUT_NAME, Array, DataContract, LocalDataset
from holdfast.learn.data_contract import CONTRACT_FILE, SiteContract, read_contract
from holdfast.learn.data_csv import read_csv

MAX_DATASET_BYTES = 8 * 2**30  # unpacked; a device with more than 8 GiB of samples needs another source than this
MAX_ARRAYS = 64
MAX_FILES = 10_000
NPZ, NPY, CSV = ".npz", ".npy", ".csv"


def open_dataset(path: Path, model: DataContract) -> LocalDataset:
    """Read and check all samples at `path`.

    Raises: DatasetError: naming the file, the array or column, and the first row that breaks the contract.
    """
    kind, files = _files(path)
    declared = path / CONTRACT_FILE
    contract = read_contract(declared, model) if path.is_dir() and declared.exists() else SiteContract(model)
    if kind == NPY:
        return _checked(path, _named({file.stem: _read_npy(file) for file in files}, path, contract), contract)
    read: Callable[[Path], dict[str, Array]] = (
        (lambda file: read_csv(file, contract))
        if kind == CSV
        else (lambda file: _named(_read_npz(file), file, contract))
    )
    return LocalDataset.joined([_checked(file, read(file), contract) for file in files])


def count_rows(path: Path) -> int:
    """How many samples there are, from headers and line ends alone: nothing is checked.

    Raises: DatasetError: no such file, or none whose labels can be counted.
    """
    kind, files = _files(path)
    if kind == NPY:
        return _rows_of(path / f"{LABELS_NAME}{NPY}", lambda: (path / f"{LABELS_NAME}{NPY}").open("rb"))
    return sum(_csv_rows(file) if kind == CSV else _npz_rows(file) for file in files)


def _files(path: Path) -> tuple[str, list[Path]]:
    """The kind and the files of a source, in order."""
    if path.is_file():
        return (CSV if path.suffix == CSV else NPZ), [path]
    if not path.is_dir():
        raise DatasetError(f"{path}: no such file or folder")
    found = sorted(each for each in path.iterdir() if each.name != CONTRACT_FILE and not each.name.startswith("."))
    kinds = {each.suffix for each in found}
    strange = [each.name for each in found if each.suffix not in (NPZ, NPY, CSV) or not each.is_file()]
    if strange:
        raise DatasetError(f"{path} holds {strange[0]!r}; expected npz, npy or csv files, and {CONTRACT_FILE}")
    if len(kinds) != 1:
        what = f"holds {' and '.join(sorted(kinds))} files" if kinds else "holds no samples"
        raise DatasetError(f"{path} {what}; expected files of one kind: npz, npy or csv")
    if len(found) > MAX_FILES or sum(each.stat().st_size for each in found) > MAX_DATASET_BYTES:
        raise DatasetError(f"{path} holds more than {MAX_FILES} files or {MAX_DATASET_BYTES} bytes")
    return kinds.pop(), found


def _named(arrays: dict[str, Array], path: Path, contract: SiteContract) -> dict[str, Array]:
    """The arrays under the model's names; an array that nobody declared is refused."""
    names = {spec.name for spec in contract.data.inputs}
    if len(names) == 1 and SINGLE_INPUT_NAME in arrays and not names & set(arrays):
        arrays[next(iter(names))] = arrays.pop(SINGLE_INPUT_NAME)
    unknown = sorted(set(arrays) - names - {LABELS_NAME})
    if unknown:
        raise DatasetError(f"{path}: array {unknown[0]!r} is not declared; expected {contract.data.expected_names}")
    return arrays


def _checked(path: Path, arrays: dict[str, Array], contract: SiteContract) -> LocalDataset:
    try:
        return LocalDataset.from_arrays(arrays, contract.data)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if len(members) > MAX_ARRAYS or unpacked > MAX_DATASET_BYTES:
            raise DatasetError(
                f"{path}: {len(members)} arrays of {unpacked} bytes in total; "
                f"at most {MAX_ARRAYS} arrays and {MAX_DATASET_BYTES} bytes are read"
            )
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
        raise DatasetError(f"{path}: not a readable npz file of plain arrays ({type(error).__name__})") from error


def _read_npy(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path}: not a readable npy file of a plain array ({type(error).__name__})") from error


def _npz_rows(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            return _rows_of(path, lambda: archive.open(f"{LABELS_NAME}{NPY}"))
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: not an npz file with labels '{LABELS_NAME}' ({type(error).__name__})") from error


def _rows_of(path: Path, opened: Callable[[], IO[bytes]]) -> int:
    try:
        with opened() as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = read(member)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DatasetError(f"{path}: not an npz file with labels '{LABELS_NAME}' ({type(error).__name__})") from error
    if not shape:
        raise DatasetError(f"{path}: labels '{LABELS_NAME}' have no dimension, expected one per sample")
    return int(shape[0])


def _csv_rows(path: Path) -> int:
    """Line ends below the header; a quoted cell with a line end in it counts once more."""
    with path.open("rb") as file:
        lines = sum(1 for line in file if line.strip())
    return max(0, lines - 1)
