"""Reading JSON documents strictly: one canonical spelling, known keys only, every value with its bounds.

Canonical means: keys sorted, no white space, UTF-8 as it is, floats as Python's shortest form, no NaN. A reader of a
document serialises what it parsed again and compares (`check_canonical`), so a signed document has one spelling only.
Times are RFC 3339 in UTC with whole seconds: `2026-01-31T12:00:00Z`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NoReturn, TypeVar

from holdfast.errors import BundleError

T = TypeVar("T")

MAX_TEXT_CHARS = 4_096  # a purpose or a comment: a page, not a book
NS_PER_S = 1_000_000_000

SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)


class Fields:
    """One JSON object whose keys are known; each method takes one value out and checks it."""

    def __init__(self, value: object, keys: set[str], where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"{where} is not an object; expected the keys {', '.join(sorted(keys))}")
        unknown, missing = sorted(set(value) - keys), sorted(keys - set(value))
        if unknown:
            raise BundleError(f"{where} has the unknown key {str(unknown[0])[:100]!r}; written by a newer holdfast?")
        if missing:
            raise BundleError(f"{where} lacks the key {missing[0]!r}")
        self._values: dict[str, object] = value
        self.where = where

    def text(self, key: str, *, minimum: int = 0, maximum: int = MAX_TEXT_CHARS) -> str:
        value = self._values[key]
        if not isinstance(value, str) or not minimum <= len(value) <= maximum:
            self._refuse(key, f"a text of {minimum} to {maximum} characters")
        # a lone surrogate cannot be written as UTF-8, and control characters hide text from whoever approves it
        if any(not (char.isprintable() or char == "\n") for char in value):
            self._refuse(key, "a text of printable characters")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self._values[key]
        if not isinstance(value, str) or value not in choices:
            self._refuse(key, "one of " + ", ".join(choices))
        return value

    def matching(self, key: str, pattern: re.Pattern[str], expected: str) -> str:
        value = self._values[key]
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            self._refuse(key, expected)
        return value

    def sha256(self, key: str) -> str:
        return self.matching(key, SHA256, "64 hexadecimal digits")

    def utc_ns(self, key: str) -> int:
        return utc_ns_of(self.matching(key, _TIME, "a time like 2026-01-31T12:00:00Z"), f"{self.where}.{key}")

    def integer(self, key: str, *, minimum: int = 0, maximum: int = 2**62) -> int:
        value = self._values[key]
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            self._refuse(key, f"an integer from {minimum} to {maximum}")
        return value

    def number(self, key: str, *, minimum: float = 0.0, maximum: float = 1e30) -> float:
        value = self._values[key]
        if not isinstance(value, float) or not minimum <= value <= maximum:
            self._refuse(key, f"a decimal number from {minimum:g} to {maximum:g}")
        return value

    def boolean(self, key: str) -> bool:
        value = self._values[key]
        if not isinstance(value, bool):
            self._refuse(key, "true or false")
        return value

    def each(self, key: str, read: Callable[[object, str], T], *, maximum: int) -> tuple[T, ...]:
        """The items of a list, each read by `read(value, where)`."""
        value = self._values[key]
        if not isinstance(value, list) or len(value) > maximum:
            self._refuse(key, f"a list of at most {maximum} items")
        return tuple(read(item, f"{self.where}.{key}[{index}]") for index, item in enumerate(value))

    def mapping(self, key: str, read: Callable[[object, str], T], *, maximum: int) -> dict[str, T]:
        """The values of an object with free keys, each read by `read(value, where)`."""
        value = self._values[key]
        if not isinstance(value, dict) or len(value) > maximum:
            self._refuse(key, f"an object of at most {maximum} keys")
        return {str(name): read(item, f"{self.where}.{key}[{str(name)[:100]!r}]") for name, item in value.items()}

    def inner(self, key: str, read: Callable[[object, str], T]) -> T:
        return read(self._values[key], f"{self.where}.{key}")

    def optional(self, key: str, read: Callable[[object, str], T]) -> T | None:
        return None if self._values[key] is None else self.inner(key, read)

    def _refuse(self, key: str, expected: str) -> NoReturn:
        got = repr(self._values[key])[:100]
        raise BundleError(f"{self.where}.{key} must be {expected}, got {got}")


def parse_json(data: bytes, what: str, max_bytes: int) -> object:
    """Parse bounded UTF-8 JSON without NaN or infinity.

    Raises:
        BundleError: too large or not JSON.
    """
    if len(data) > max_bytes:
        raise BundleError(f"{what} has {len(data)} bytes, at most {max_bytes} are read")
    try:
        value: object = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{what} is not JSON: {str(error)[:100]}") from error
    return value


def canonical_json(value: object) -> bytes:
    """The one spelling of a document."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def check_canonical(data: bytes, again: bytes, what: str) -> None:
    """Raise BundleError unless `data` is exactly what this program would have written (`again`)."""
    if data == again:
        return
    shortest = min(len(data), len(again))
    offset = next((at for at in range(shortest) if data[at] != again[at]), shortest)
    raise BundleError(f"{what} is not in its canonical form at byte {offset}: keys sorted, no white space")


def finite_number(value: object, where: str) -> float:
    """An item reader: one decimal number that is not NaN or infinite."""
    if not isinstance(value, float) or not math.isfinite(value):
        raise BundleError(f"{where} must be a decimal number, got {repr(value)[:100]}")
    return value


def count(value: object, where: str) -> int:
    """An item reader: one count, 0 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 2**62:
        raise BundleError(f"{where} must be an integer from 0 on, got {repr(value)[:100]}")
    return value


def utc_text(utc_ns: int) -> str:
    """A time as documents write it; what is below a second is cut off."""
    return datetime.fromtimestamp(utc_ns // NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_ns_of(text: str, where: str) -> int:
    """Nanoseconds since 1970 of a time as documents write it.

    Raises:
        BundleError: not such a time.
    """
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise BundleError(f"{where} is {text[:40]!r}, expected a time like 2026-01-31T12:00:00Z") from error
    return int(moment.timestamp()) * NS_PER_S


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that documents may hold")
