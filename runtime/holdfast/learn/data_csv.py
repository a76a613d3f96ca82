"""Samples out of a CSV file: a header, one line per sample, one column per value. Pure but for reading the file.

A column per element of an input, in C order, as `contract.toml` names them; without a declaration every column but the
label's, in the order of the header, is the model's single input. Nothing is guessed: a value that is not a number, a
missing one, a line that is too short or a column that nobody declared is refused, with its line.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from holdfast.errors import DatasetError
from holdfast.learn.data import LABELS_NAME, Array
from holdfast.learn.data_contract import SiteContract

MAX_CSV_BYTES = 1_073_741_824  # 1 GiB of text; more belongs into npz, which is ten times smaller and faster

Cells = list[list[str]]


def read_csv(path: Path, contract: SiteContract) -> dict[str, Array]:
    """The arrays of a file: every input of the contract, and `y`.

    Raises: DatasetError: naming the file, the line and the column that is at fault; never a value.
    """
    if path.stat().st_size > MAX_CSV_BYTES:
        raise DatasetError(f"{path} is larger than {MAX_CSV_BYTES} bytes; write it as npz")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            columns = _input_columns(header, contract)
            rows = list(_whole_lines(reader, len(header)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} is not a CSV file in UTF-8 ({type(error).__name__})") from error
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    place = {name: index for index, name in enumerate(header)}
    try:
        arrays: dict[str, Array] = {}
        for spec in contract.data.inputs:
            chosen = [place[name] for name in columns[spec.name]]
            table = _numbers(rows, chosen, header, spec.dtype)
            arrays[spec.name] = table.reshape(len(rows), *spec.shape)
        arrays[LABELS_NAME] = _labels(rows, [place[name] for name in contract.label_columns], header, contract)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    return arrays


def _whole_lines(reader: Iterable[list[str]], width: int) -> Iterator[list[str]]:
    for number, cells in enumerate(reader, 2):
        if len(cells) != width:
            raise DatasetError(f"line {number} has {len(cells)} values, the header {width}")
        yield cells


def _input_columns(header: Sequence[str], contract: SiteContract) -> Mapping[str, tuple[str, ...]]:
    if len(set(header)) != len(header):
        raise DatasetError("the header names a column twice")
    absent = [name for name in contract.label_columns if name not in header]
    if absent:
        raise DatasetError(f"column {absent[0]!r} is missing; the label stands there")
    found = dict(contract.columns)
    others = tuple(name for name in header if name not in contract.label_columns)
    specs = contract.data.inputs
    if not found and len(specs) == 1:
        found = {specs[0].name: others}
    for spec in specs:
        if spec.name not in found:
            raise DatasetError(f"no columns are declared for input {spec.name!r}; name them in contract.toml")
        missing = [name for name in found[spec.name] if name not in header]
        if missing:
            raise DatasetError(f"column {missing[0]!r} of input {spec.name!r} is missing")
        if len(found[spec.name]) != math.prod(spec.shape):
            raise DatasetError(
                f"input {spec.name!r} has {len(found[spec.name])} columns, expected {math.prod(spec.shape)}"
            )
    used = {name for names in found.values() for name in names}
    unused = [name for name in others if name not in used]
    if unused:
        raise DatasetError(f"column {unused[0]!r} is not declared; name it in contract.toml or leave it out")
    return found


def _numbers(rows: Cells, chosen: Sequence[int], header: Sequence[str], dtype: str) -> Array:
    """[rows, columns] of `dtype`; the slow search for the culprit runs only when the fast conversion failed."""
    convert = float if np.dtype(dtype).kind == "f" else int
    try:
        values = [[convert(cells[index]) for index in chosen] for cells in rows]
        return np.array(values, dtype=dtype).reshape(len(rows), len(chosen))
    except (ValueError, OverflowError):
        for number, cells in enumerate(rows, 2):
            for index in chosen:
                try:
                    np.array(convert(cells[index]), dtype=dtype)
                except (ValueError, OverflowError) as error:
                    raise DatasetError(f"line {number}, column {header[index]!r}: not a number of {dtype}") from error
        raise


def _labels(rows: Cells, columns: Sequence[int], header: Sequence[str], contract: SiteContract) -> Array:
    shape = contract.data.target_shape
    if shape is not None:
        if math.prod(shape) != len(columns):
            raise DatasetError(f"a label has {math.prod(shape)} numbers; name their columns in contract.toml")
        return _numbers(rows, columns, header, "float32").reshape(len(rows), *shape)
    if not contract.label_names:
        return _numbers(rows, columns, header, "int64").reshape(-1)
    known = {name: index for index, name in enumerate(contract.label_names)}
    for number, cells in enumerate(rows, 2):
        if cells[columns[0]] not in known:
            raise DatasetError(f"line {number}, column {header[columns[0]]!r}: not one of the declared labels")
    return np.array([known[cells[columns[0]]] for cells in rows], dtype=np.int64)
