"""`contract.toml`: what a site declares about its own samples, on top of what the model asks for.

    [labels]
    column = "species"                  # CSV: where the label stands; default y
    columns = ["height", "weight"]      # CSV: instead, where labels are several numbers per sample; in order
    names = ["setosa", "virginica"]     # CSV: labels as text, in the model's order of classes

    [inputs.flower]                     # an input of the model
    columns = ["length", "width"]       # CSV: its values, in order
    minimum = 0.0                       # what no sample may be below or above; a reading of -999 is an error, not data
    maximum = 30.0
    dtype = "float32"                   # both may be left out; they are compared with the model's
    shape = [2]

Rules: an unknown key is refused, and so is a declaration that contradicts the model.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from holdfast.errors import DatasetError
from holdfast.learn.data import LABELS_NAME, DataContract, InputContract

CONTRACT_FILE = "contract.toml"
MAX_CONTRACT_BYTES = 1_048_576
MAX_COLUMNS = 65_536

Table = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class SiteContract:
    """The contract that samples are held against, and how a CSV file's columns map to it.

    label_columns: one, or one per number of a label. label_names: empty, or one per class.
    columns: by input, only where they are declared.
    """

    data: DataContract
    label_columns: tuple[str, ...] = (LABELS_NAME,)
    label_names: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_contract(path: Path, model: DataContract) -> SiteContract:
    """Read a declaration and narrow the model's contract by it.

    Raises: DatasetError: not TOML, an unknown key, a wrong type, or a contradiction to the model.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONTRACT_BYTES + 1)
        if len(text) > MAX_CONTRACT_BYTES:
            raise DatasetError(f"{path} is larger than {MAX_CONTRACT_BYTES} bytes")
        return _contract(tomllib.loads(text.decode("utf-8")), model)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as TOML ({type(error).__name__})") from error
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def _contract(table: Table, model: DataContract) -> SiteContract:
    _check_keys(table, ("labels", "inputs"), "the file")
    labels = _table(table.get("labels", {}), "labels")
    _check_keys(labels, ("column", "columns", "names"), "labels")
    names = _texts(labels.get("names", []), "labels.names")
    if names and (len(names) != model.class_count or len(set(names)) != len(names)):
        raise DatasetError(f"labels.names has {len(names)} names; the model has {model.class_count} different classes")
    label_columns = _label_columns(labels, model)
    declared = _table(table.get("inputs", {}), "inputs")
    _check_keys(declared, tuple(spec.name for spec in model.inputs), "inputs")
    inputs, columns = [], {}
    for spec in model.inputs:
        about = _table(declared.get(spec.name, {}), f"inputs.{spec.name}")
        inputs.append(_narrowed(spec, about))
        if "columns" in about:
            columns[spec.name] = _texts(about["columns"], f"inputs.{spec.name}.columns")
    data = dataclasses.replace(model, inputs=tuple(inputs))
    return SiteContract(data, label_columns, names, columns)


def _label_columns(labels: Table, model: DataContract) -> tuple[str, ...]:
    column = labels.get("column", LABELS_NAME)
    if not isinstance(column, str):
        raise DatasetError("labels.column must be text")
    if "columns" not in labels:
        return (column,)
    if "column" in labels:
        raise DatasetError("labels has both column and columns; give one of them")
    wanted = 1 if model.target_shape is None else math.prod(model.target_shape)
    columns = _texts(labels["columns"], "labels.columns")
    if len(columns) != wanted:
        raise DatasetError(f"labels.columns has {len(columns)} columns, the model's labels have {wanted}")
    return columns


def _narrowed(spec: InputContract, about: Table) -> InputContract:
    where = f"inputs.{spec.name}"
    _check_keys(about, ("columns", "minimum", "maximum", "dtype", "shape"), where)
    if about.get("dtype", spec.dtype) != spec.dtype:
        raise DatasetError(f"{where}.dtype is {about['dtype']!r}, the model takes {spec.dtype!r}")
    if about.get("shape", list(spec.shape)) != list(spec.shape):
        raise DatasetError(f"{where}.shape is {about['shape']}, the model takes {list(spec.shape)}")
    low = max(spec.minimum, _number(about.get("minimum", -math.inf), f"{where}.minimum"))
    high = min(spec.maximum, _number(about.get("maximum", math.inf), f"{where}.maximum"))
    if not low <= high:
        raise DatasetError(f"{where}: no value is at least {low} and at most {high}")
    return dataclasses.replace(spec, minimum=low, maximum=high)


def _check_keys(table: Table, allowed: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(table) - set(allowed))
    if unknown:
        raise DatasetError(f"{where} has the key {unknown[0]!r}; allowed are {', '.join(allowed)}")


def _table(value: object, where: str) -> Table:
    if not isinstance(value, dict):
        raise DatasetError(f"{where} must be a table")
    return cast("Table", value)


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_COLUMNS or not all(isinstance(each, str) for each in value):
        raise DatasetError(f"{where} must be a list of texts")
    return tuple(cast("list[str]", value))


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise DatasetError(f"{where} must be a number")
    return float(value)
