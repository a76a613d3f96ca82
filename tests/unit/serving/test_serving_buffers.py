"""Memory that is used again: never by two at once, never beyond its bounds."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.serving.buffers import ALIGNMENT, MAX_KEPT, Buffers

SIZE = 600_000


def address(octets: memoryview) -> int:
    return int(np.frombuffer(octets, dtype=np.uint8).ctypes.data)


@pytest.mark.parametrize("at", [0, 5, 77])
def test_the_octet_that_was_named_is_aligned(at: int) -> None:
    octets = Buffers().take(SIZE, at)

    assert (len(octets), (address(octets) + at) % ALIGNMENT) == (SIZE, 0)


def test_octets_that_nobody_refers_to_are_handed_out_again() -> None:
    buffers = Buffers()
    first = buffers.take(SIZE)
    place = address(first)

    del first

    assert address(buffers.take(SIZE)) == place
    assert address(buffers.take(SIZE - 1)) == place


@pytest.mark.parametrize(
    "derived",
    [
        lambda octets: octets,
        lambda octets: octets[5:9],
        lambda octets: np.frombuffer(octets, dtype=np.float32),
        lambda octets: np.frombuffer(octets, dtype=np.float32).reshape(2, -1)[1:, :3],
        lambda octets: np.frombuffer(octets, dtype=np.float32)[:4].view(np.int32),
        lambda octets: memoryview(np.frombuffer(octets, dtype=np.uint8))[3:].toreadonly(),
    ],
    ids=["itself", "slice", "array", "part of a reshaped array", "view of another type", "view of an array of it"],
)
def test_octets_stay_their_owners_for_as_long_as_anything_refers_to_them(derived: object) -> None:
    buffers = Buffers()
    octets = buffers.take(SIZE)
    place = address(octets)
    kept = derived(octets)  # type: ignore[operator]  # one of the functions above

    del octets

    others = [buffers.take(SIZE) for _ in range(3)]
    assert place not in [address(each) for each in others]
    assert len({address(each) for each in others}) == 3
    del kept
    assert address(buffers.take(SIZE)) == place


def test_what_is_kept_is_bounded_in_octets_and_in_number() -> None:
    large, many = Buffers(max_kept_bytes=5 * SIZE), Buffers()

    in_use = [(large.take(SIZE), many.take(10)) for _ in range(3 * MAX_KEPT)]

    assert large.kept_bytes <= 5 * SIZE
    assert many.kept_bytes == MAX_KEPT * (10 + ALIGNMENT)
    assert len({address(each) for each, _ in in_use}) == len(in_use)


def test_octets_larger_than_all_that_may_be_kept_are_given_back() -> None:
    buffers = Buffers(max_kept_bytes=SIZE)

    assert len(buffers.take(SIZE)) == SIZE

    assert buffers.kept_bytes == 0


def test_unused_octets_make_room_for_other_sizes() -> None:
    buffers = Buffers(max_kept_bytes=2 * SIZE)
    for size in (SIZE // 10, SIZE, SIZE // 3, SIZE + SIZE // 2):
        buffers.take(size)

    assert SIZE + SIZE // 2 <= buffers.kept_bytes <= 2 * SIZE


def test_a_small_tensor_does_not_sit_on_the_memory_of_a_large_one() -> None:
    buffers = Buffers()
    place = address(buffers.take(SIZE))

    assert address(buffers.take(SIZE // 4)) != place


def test_what_is_forgotten_goes_back_when_its_owner_is_done() -> None:
    buffers = Buffers()
    octets = buffers.take(SIZE)
    octets[:3] = b"abc"

    buffers.forget()

    assert buffers.kept_bytes == 0
    assert bytes(octets[:3]) == b"abc"


def test_what_was_not_used_for_a_while_is_given_back() -> None:
    buffers = Buffers()
    buffers.take(1_000)

    buffers.forget_if_idle()
    kept_while_used = buffers.kept_bytes
    buffers.forget_if_idle()

    assert kept_while_used > 0
    assert buffers.kept_bytes == 0
