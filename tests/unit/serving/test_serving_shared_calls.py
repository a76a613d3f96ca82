"""Messages for tensors in shared memory: found again only where the whole decoder would say the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.shared_calls import shared_request

from holdfast.serving import oip_pb2
from holdfast.serving.grpc_wire import framed_prefix
from holdfast.serving.native.shared_calls import MAX_KNOWN, SharedCalls

ids = st.text(max_size=130).filter(lambda text: "\x00" not in text)


@given(ids, st.integers(0, 5), st.integers(0, 2**40), st.booleans(), st.sampled_from(["", "1", "12"]))
def test_messages_that_are_found_again_mean_what_they_mean_to_the_whole_decoder(
    request_id: str, rows: int, offset: int, again: bool, version: str
) -> None:
    calls = SharedCalls()
    message = oip_pb2.ModelInferRequest.FromString(
        shared_request("double", "", (rows, 4), size=rows * 16 or 1, offset=offset)
    )
    message.model_version = version
    if again:
        message.id = "first"
        calls.find(framed(message.SerializeToString()))
    message.id = request_id
    data = message.SerializeToString()

    found = calls.find(framed(data))

    if found is None:
        assert rows == 0 or len(request_id.encode()) > 127
        return
    call, told_id = found
    assert (told_id, call.kind.model, call.kind.version) == (request_id, "double", version)
    assert (call.shapes, call.places[0].offset, call.places[0].size_bytes) == (((rows, 4),), offset, rows * 16)


@pytest.mark.parametrize(
    "more",
    [b"\x1a\x05other", b"\x1a\x00", b"\x0a\x04same", b"\x12\x011", b"\x3a\x00", b"\x22\x00", b"\xf8\x07\x01"],
    ids=["id again", "empty id again", "name again", "version at the end", "contents", "a parameter", "unknown field"],
)
def test_message_with_anything_behind_its_declarations_is_for_the_whole_decoder(more: bytes) -> None:
    calls = SharedCalls()
    assert calls.find(framed(shared_request("double", "1", (2, 4), size=32))) is not None

    assert calls.find(framed(shared_request("double", "1", (2, 4), size=32) + more)) is None


def test_messages_that_are_remembered_are_bounded() -> None:
    calls = SharedCalls()

    for slot in range(3 * MAX_KNOWN):
        assert calls.find(framed(shared_request("double", "1", (2, 4), size=32, offset=slot * 32))) is not None

    assert len(calls._known) <= MAX_KNOWN


def framed(message: bytes) -> bytes:
    return framed_prefix(len(message)) + message
