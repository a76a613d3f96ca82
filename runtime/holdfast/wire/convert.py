"""Frozen dataclasses <-> protobuf messages, by field name; total in both directions.

Bytes from elsewhere end in a dataclass or a FormatError, never in another exception: the size is checked before
parsing, string lengths and item counts after it, and a hash is 32 bytes or absent. Unknown fields are ignored here;
whoever must keep them keeps the bytes.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from holdfast.errors import FormatError
from holdfast.trust.envelope import Envelope, Signature
from holdfast.wire import limits, messages
from holdfast.wire.v1 import enrolment_pb2, envelope_pb2, fleet_pb2, ledger_pb2, report_pb2, rounds_pb2

T = TypeVar("T")

HASH_BYTES = 32  # SHA-256


def _table() -> dict[type[Any], type[Message]]:
    table: dict[type[Any], type[Message]] = {Envelope: envelope_pb2.Envelope, Signature: envelope_pb2.Signature}
    for module in (enrolment_pb2, report_pb2, fleet_pb2, rounds_pb2, ledger_pb2):
        for name in module.DESCRIPTOR.message_types_by_name:
            cls = getattr(messages, name, None)
            if cls is not None:
                table[cls] = getattr(module, name)
    return table


MESSAGE_OF = _table()


def to_bytes(value: object) -> bytes:
    """Serialise a message dataclass. Deterministic for one protobuf version; sign and keep these very bytes."""
    return to_proto(value).SerializeToString(deterministic=True)


def from_bytes(cls: type[T], data: bytes, *, max_bytes: int = limits.MAX_MESSAGE_BYTES) -> T:
    """Parse and check one message.

    Raises:
        FormatError: larger than `max_bytes`, not a protobuf message, or a field out of its bounds.
    """
    if len(data) > max_bytes:
        raise FormatError(f"{cls.__name__} is {len(data)} bytes; at most {max_bytes} are accepted")
    message = MESSAGE_OF[cls]()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise FormatError(f"these {len(data)} bytes are not a {cls.__name__} message") from error
    return from_proto(cls, message)


def to_proto(value: object) -> Message:
    """The protobuf message that says the same as a message dataclass."""
    message = MESSAGE_OF[type(value)]()
    for field in dataclasses.fields(value):  # type: ignore[arg-type]  # every key of MESSAGE_OF is a dataclass
        item = getattr(value, field.name)
        if item is None:
            continue
        if dataclasses.is_dataclass(item):
            getattr(message, field.name).CopyFrom(to_proto(item))
        elif isinstance(item, tuple):
            getattr(message, field.name).extend(to_proto(x) if dataclasses.is_dataclass(x) else x for x in item)
        elif isinstance(item, Mapping):
            _put_map(getattr(message, field.name), item)
        else:
            setattr(message, field.name, item)
    return message


def from_proto(cls: type[T], message: Message) -> T:
    """The dataclass for a parsed message.

    Raises:
        FormatError: a string too long, too many items, or a hash that is not 32 bytes.
    """
    values = {}
    for name, hint, inner in PLANS[cls]:
        item = getattr(message, name)
        if inner is not None and hint is None:
            values[name] = from_proto(inner, item) if message.HasField(name) else None
        elif inner is not None and hint is not tuple and hint is not Mapping:
            values[name] = from_proto(inner, item)
        else:
            values[name] = _checked(f"{cls.__name__}.{name}", item, hint, inner)
    return cls(**values)


def _plan(cls: type[Any]) -> tuple[tuple[str, Any, Any], ...]:
    """Per field: its name, its shape (tuple, Mapping, None = optional message, object = plain), its inner dataclass."""
    hints = typing.get_type_hints(cls)
    plan: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        arguments = [arg for arg in typing.get_args(hint) if arg not in (types.NoneType, Ellipsis)]
        origin = typing.get_origin(hint)
        if origin is types.UnionType:
            plan.append((field.name, None, arguments[0]))
        elif origin is tuple:
            plan.append((field.name, tuple, arguments[0] if arguments[0] in MESSAGE_OF else None))
        elif origin is not None:
            plan.append((field.name, Mapping, arguments[1] if arguments[1] in MESSAGE_OF else None))
        else:
            plan.append((field.name, object, hint if hint in MESSAGE_OF else None))
    return tuple(plan)


def _checked(name: str, item: Any, shape: Any, inner: type[Any] | None) -> object:
    if shape is object:
        return _scalar(name, item)
    if len(item) > limits.MAX_ITEMS:
        raise FormatError(f"{name} has {len(item)} items; at most {limits.MAX_ITEMS} are accepted")
    if shape is tuple:
        return tuple(from_proto(inner, x) if inner else _scalar(name, x) for x in item)
    return {
        _scalar(name, key): from_proto(inner, item[key]) if inner else _scalar(name, item[key]) for key in sorted(item)
    }


def _scalar(name: str, item: Any) -> Any:
    if isinstance(item, str) and len(item) > limits.MAX_STRING_CHARACTERS:
        raise FormatError(f"{name} has {len(item)} characters; at most {limits.MAX_STRING_CHARACTERS} are accepted")
    is_hash = name.endswith(("_sha256", "_hash")) and isinstance(item, bytes)
    if is_hash and len(item) not in (0, HASH_BYTES):
        raise FormatError(f"{name} has {len(item)} bytes; a SHA-256 has {HASH_BYTES}")
    return item


def _put_map(target: Any, source: Mapping[str, Any]) -> None:
    for key, item in source.items():
        if dataclasses.is_dataclass(item):
            target[key].CopyFrom(to_proto(item))
        else:
            target[key] = item


PLANS = {cls: _plan(cls) for cls in MESSAGE_OF}
