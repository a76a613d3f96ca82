"""Settings of one process: TOML file < environment variable < flag, into one frozen dataclass.

Rules: an unknown key, a wrong type or a value out of range refuses the start and names the key, the value and what
is allowed. Units are part of a key's name (`window_s`, `max_bytes`). A settings class is a frozen dataclass whose
fields carry `setting(...)`: default, help and range; the documentation table is made from the same fields. A field
whose type is itself a settings class is a table of the file: `[serving] max_queued` is HOLDFAST_SERVING_MAX_QUEUED.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from holdfast.errors import SettingsError

ENVIRONMENT_PREFIX = "HOLDFAST_"
MAX_FILE_BYTES = 1_048_576  # 1 MiB: a settings file is a page of text; more is a mistake

T = TypeVar("T")


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare one field of a settings dataclass; `default` must be immutable."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def load(
    cls: type[T],
    *,
    path: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    prefix: str = ENVIRONMENT_PREFIX,
) -> T:
    """Build `cls` from its defaults, a TOML file, variables that begin with `prefix`, and flags (None = not given).

    Raises:
        SettingsError: an unknown key, a value of the wrong type or out of range, or a file that is not TOML.
    """
    found = {} if path is None else _read_toml(path)
    values = _values(cls, found, str(path), prefix, os.environ if environment is None else environment)
    fields, hints = _fields(cls), typing.get_type_hints(cls)
    for key, value in (flags or {}).items():
        if value is not None:
            _require_known(key, fields, source="flag")
            values[key] = _check(fields[key], hints[key], value, source=f"--{key.replace('_', '-')}")
    return cls(**values)


def describe(cls: type[object]) -> list[tuple[str, str, str, str]]:
    """Rows (key, default, allowed, help) of a settings class, for documents and `--help`."""
    rows = []
    for field in _fields(cls).values():
        is_table = dataclasses.is_dataclass(field.default)
        default, allowed = (type(field.default).__name__, "a table") if is_table else (repr(field.default), None)
        rows.append((field.name, default, allowed or _allowed(field), str(field.metadata.get("help", ""))))
    return rows


def _fields(cls: type[object]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # a dataclass by contract


def _values(
    cls: type[object], table: Mapping[str, object], source: str, prefix: str, environment: Mapping[str, str]
) -> dict[str, object]:
    """What a table of a file and the environment say about the fields of `cls`."""
    fields, hints = _fields(cls), typing.get_type_hints(cls)
    values: dict[str, object] = {}
    for key, value in table.items():
        _require_known(key, fields, source=source)
        values[key] = value if _is_table(hints[key]) else _check(fields[key], hints[key], value, source=source)
    for key, text in environment.items():
        name = key.removeprefix(prefix).lower()
        if key.startswith(prefix) and name in fields and not _is_table(hints[name]):
            values[name] = _check(fields[name], hints[name], _from_text(hints[name], text, key), source=key)
    for name, hint in hints.items():
        if _is_table(hint):
            inner = values.get(name, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"setting '{name}' in {source} must be a table, got {inner!r}")
            below = f"{prefix}{name.upper()}_"
            values[name] = hint(**_values(hint, inner, f"[{name}] of {source}", below, environment))
    return values


def _is_table(hint: object) -> typing.TypeGuard[type[Any]]:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _read_toml(path: Path) -> dict[str, object]:
    import tomllib  # most processes have no such file

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SettingsError(f"settings file {path} is larger than {MAX_FILE_BYTES} bytes; is it the right file?")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"settings file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"settings file {path} is not valid TOML: {error}") from error


def _require_known(key: str, fields: Mapping[str, object], *, source: str) -> None:
    if key not in fields:
        raise SettingsError(f"unknown setting '{key}' in {source}; known settings: {', '.join(sorted(fields))}")


def _from_text(hint: object, text: str, source: str) -> object:
    kind = _plain(hint)
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
    except (ValueError, KeyError) as error:
        raise SettingsError(f"{source}={text!r} is not a {kind.__name__}") from error
    if kind is tuple:
        return tuple(part for part in text.split(",") if part)
    return text


def _plain(hint: object) -> type:
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    origin = typing.get_origin(hint) or hint
    return origin if isinstance(origin, type) else str


def _check(field: dataclasses.Field[Any], hint: object, value: object, *, source: str) -> object:
    kind = _plain(hint)
    if kind is Path and isinstance(value, str):
        value = Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = _as_float(field, value, source)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    wrong_bool = isinstance(value, bool) and kind is not bool
    if wrong_bool or not isinstance(value, kind):
        raise SettingsError(f"setting '{field.name}' in {source} must be a {kind.__name__}, got {value!r}")
    if isinstance(value, tuple) and str in typing.get_args(hint):
        for item in value:
            if not isinstance(item, str):
                raise SettingsError(f"setting '{field.name}' in {source} must be a list of str, got {item!r} in it")
    low, high, choices = field.metadata.get("minimum"), field.metadata.get("maximum"), field.metadata.get("choices")
    number = value if isinstance(value, (int, float)) else None
    too_low = number is not None and low is not None and not number >= low
    too_high = number is not None and high is not None and not number <= high
    if too_low or too_high or (choices and value not in choices):
        raise SettingsError(f"setting '{field.name}' in {source} is {value!r}; allowed: {_allowed(field)}")
    return value


def _as_float(field: dataclasses.Field[Any], value: int, source: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise SettingsError(
            f"setting '{field.name}' in {source} is past every float; allowed: {_allowed(field)}"
        ) from error


def _allowed(field: dataclasses.Field[Any]) -> str:
    low, high, choices = field.metadata.get("minimum"), field.metadata.get("maximum"), field.metadata.get("choices")
    if choices:
        return " | ".join(choices)
    if low is None and high is None:
        return "any"
    return f"{'' if low is None else low} .. {'' if high is None else high}".strip()
