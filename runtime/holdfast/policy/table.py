"""Reads one table of plain values key by key, with the type each key must have; knows what was left unread."""

from __future__ import annotations

from holdfast.errors import PolicyError


class Table:
    """One table of plain values, taken key by key; what is left at the end was unknown."""

    def __init__(self, value: object, name: str) -> None:
        if not isinstance(value, dict):
            raise PolicyError(f"policy part '{name}' is missing or is not a table")
        self._left: dict[str, object] = dict(value)
        self._name = name

    def take(self, key: str, *default: object) -> object:
        if key not in self._left and not default:
            raise PolicyError(f"policy part '{self._name}' lacks the key '{key}'")
        return self._left.pop(key, *default)

    def text(self, key: str) -> str:
        value = self._left.get(key)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        self._left.pop(key)
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def whole(self, key: str, *default: int) -> int:
        value = self.take(key, *default)
        if type(value) is not int:
            raise self._wrong(key, value, "a whole number")
        return value

    def whole_or_none(self, key: str) -> int | None:
        if self._left.get(key) is None:
            self._left.pop(key, None)
            return None
        return self.whole(key)

    def number_or_none(self, key: str) -> float | None:
        value = self.take(key, None)
        if value is None:
            return None
        if type(value) not in (int, float):
            raise self._wrong(key, value, "a number or null")
        return float(value)  # type: ignore[arg-type]  # an int or a float, see above

    def names(self, key: str) -> tuple[str, ...]:
        value = self.take(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, value, "a list of texts")
        return tuple(value)

    def require_empty(self) -> None:
        if self._left:
            raise PolicyError(f"policy part '{self._name}' has the unknown key '{min(self._left)}'; is it newer?")

    def _wrong(self, key: str, value: object, expected: str) -> PolicyError:
        return PolicyError(f"policy key '{self._name}.{key}' must be {expected}, got {str(value)[:80]!r}")
