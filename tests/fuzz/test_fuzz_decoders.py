"""Decoders under hypothesis: any bytes, and good bytes with defects in them; and what they may hold of memory."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz import decoders
from tests.fuzz.decoders import DECODERS
from tests.fuzz.seeds import SEEDS

from holdfast.serving.grpc_wire import framed_prefix
from holdfast.serving.http2.stream import Kind

BYTES_PER_INPUT_BYTE = 200  # Python objects around an octet: a list entry, an integer, a small string
FIXED_BYTES = 4 * 1024**2  # what a decoder may hold whatever came: tables, and messages up to their bound


@st.composite
def defective(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed, or two joined, with octets changed, taken out, put in and repeated."""
    data = bytearray(draw(st.sampled_from(seeds)) + draw(st.sampled_from([b"", *seeds])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 8)))
        data[at:to] = draw(st.binary(max_size=4) | st.just(bytes(data[at:to]) * 3))
    return bytes(data)


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_seeds_are_decoded(name: str) -> None:
    for seed in SEEDS[name]:
        DECODERS[name](seed)


def test_seeds_reach_the_good_ends() -> None:
    events, _ = decoders.conversation(decoders.pieces(SEEDS["connections"][0]), memoise=True)
    requests = decoders.http1_conversation(decoders.pieces(SEEDS["http1_requests"][2]), memoise=True)

    kinds = [event[0] for event in events]  # type: ignore[index]  # tuples
    assert kinds.count(Kind.BEGUN) + kinds.count(Kind.WHOLE) == 3
    assert [request.body for request in requests] == [b"abcdefg", b"hello"]  # type: ignore[union-attr]  # requests
    assert len(decoders.h11_requests(SEEDS["http1_requests"][2][1:])) == 2
    for seed in SEEDS["protobuf_requests"][1:3]:
        assert decoders.CODEC.decode(framed_prefix(len(seed)) + seed) is not None


@pytest.mark.parametrize("name", sorted(DECODERS))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_bytes_are_decoded_or_refused(name: str, data: st.DataObject) -> None:
    DECODERS[name](data.draw(st.binary(max_size=300) | defective(SEEDS[name])))


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_memory_is_bounded_by_what_came(name: str) -> None:
    """Each seed, and each with its lengths made huge."""
    inputs = list(SEEDS[name])
    inputs += [
        seed[:at] + b"\xff\xff\xff\xff" + seed[at + 4 :] for seed in SEEDS[name] for at in range(0, len(seed), 7)
    ]
    for data in inputs:
        DECODERS[name](data)  # first once: tables that are made when they are needed
        tracemalloc.start()
        DECODERS[name](data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < FIXED_BYTES + BYTES_PER_INPUT_BYTE * len(data)
