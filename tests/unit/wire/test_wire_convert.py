"""Messages survive a round trip, and bytes from elsewhere end in a dataclass or a FormatError."""

from __future__ import annotations

import dataclasses
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import FormatError
from holdfast.trust.envelope import Envelope, Signature
from holdfast.wire import convert, limits, messages

U31 = st.integers(0, 2**31 - 1)
NAMES = st.text("abcdefghij-_0123456789", min_size=1, max_size=12)


def strategy(cls: type) -> st.SearchStrategy:
    """Any valid instance of a message dataclass."""
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{f.name: _field(f.name, hints[f.name]) for f in dataclasses.fields(cls)})


def _field(name: str, hint: typing.Any) -> st.SearchStrategy:
    if name.endswith(("_sha256", "_hash")) and hint is bytes:
        return st.binary(min_size=32, max_size=32)
    if typing.get_origin(hint) is tuple:
        return st.lists(_field(name, typing.get_args(hint)[0]), max_size=3).map(tuple)
    if typing.get_origin(hint) is not None and type(None) not in typing.get_args(hint):
        return st.dictionaries(NAMES, _field("", typing.get_args(hint)[1]), max_size=3)
    if type(None) in typing.get_args(hint):
        return strategy(typing.get_args(hint)[0])
    plain = {int: U31, str: NAMES, bytes: st.binary(max_size=20), bool: st.booleans()}
    if hint is float:
        return st.floats(allow_nan=False)
    return plain[hint] if hint in plain else strategy(hint)


CLASSES = [cls for cls in convert.MESSAGE_OF if cls is not messages.Report]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_round_trip_returns_an_equal_message(cls: type) -> None:
    @settings(max_examples=20)
    @given(strategy(cls))
    def check(value: object) -> None:
        assert convert.from_bytes(cls, convert.to_bytes(value)) == value

    check()


@pytest.mark.parametrize("body", ["operational", "data", "round_answer", "policy_change", "model_event", "tombstone"])
def test_report_carries_each_body_and_no_other(body: str) -> None:
    hint = typing.get_type_hints(messages.Report)[body]
    head = {"device_id": "d", "key_epoch": 1, "boot_id": "b", "seq": 1, "prev_hash": messages.NO_HASH}

    @settings(max_examples=20)
    @given(strategy(typing.get_args(hint)[0]))
    def check(value: object) -> None:
        report = messages.Report(**head, clock=messages.ClockReading(1, 2), **{body: value})
        assert convert.from_bytes(messages.Report, convert.to_bytes(report)) == report

    check()


@given(st.sampled_from(CLASSES), st.binary(max_size=200))
def test_any_bytes_end_in_a_message_or_a_format_error(cls: type, data: bytes) -> None:
    try:
        convert.from_bytes(cls, data)
    except FormatError:
        return


def test_every_message_of_the_proto_files_has_a_dataclass() -> None:
    without_request_body = {"GetAuthorityRequest", "GetAuthorityResponse", "ChallengeRequest", "ChallengeResponse"}
    modules = (convert.enrolment_pb2, convert.report_pb2, convert.fleet_pb2, convert.rounds_pb2, convert.ledger_pb2)
    names = {name for module in modules for name in module.DESCRIPTOR.message_types_by_name}
    assert names - without_request_body == {cls.__name__ for cls in convert.MESSAGE_OF} - {"Envelope", "Signature"}


def test_oversized_bytes_are_refused_before_parsing() -> None:
    with pytest.raises(FormatError, match="at most 10"):
        convert.from_bytes(messages.RoundOffer, b"\xff" * 11, max_bytes=10)


def test_hash_of_a_wrong_length_is_refused() -> None:
    answer = messages.RoundAnswer(offer_sha256=b"short", run_id="r", round=1, accepted=True)
    with pytest.raises(FormatError, match="offer_sha256 has 5 bytes"):
        convert.from_bytes(messages.RoundAnswer, convert.to_bytes(answer))


def test_too_long_string_is_refused() -> None:
    event = messages.ModelEvent(model="m" * (limits.MAX_STRING_CHARACTERS + 1), bundle_digest="d", event="staged")
    with pytest.raises(FormatError, match="at most"):
        convert.from_bytes(messages.ModelEvent, convert.to_bytes(event))


def test_too_many_items_are_refused() -> None:
    request = messages.ReportRequest(records=(Envelope("t", b"", (Signature("k", b""),)),) * (limits.MAX_ITEMS + 1))
    with pytest.raises(FormatError, match="items"):
        convert.from_bytes(messages.ReportRequest, convert.to_bytes(request))
