"""The container: what is written reads back, and no other spelling of it does."""

from __future__ import annotations

import hashlib
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import FormatError
from holdfast.wire.container import ContainerLimits, read_container, write_container

FILES = {"manifest.json": b"{}", "graphs/train.onnx": b"\x08\x0a", "empty": b"", "signature": b"sig"}
SEGMENT = st.from_regex(r"[a-c.][a-c]{0,2}", fullmatch=True).filter(lambda text: text not in {".", ".."})
NAME = st.lists(SEGMENT, min_size=1, max_size=3).map("/".join)


def _is_tree(files: dict[str, bytes]) -> bool:
    return not any(after.startswith(before + "/") for before in files for after in files)


@given(files=st.dictionaries(NAME, st.binary(max_size=50), max_size=6).filter(_is_tree))
def test_container_reads_back_sorted_and_equal(files: dict[str, bytes]) -> None:
    again = read_container(write_container("bundle", files), "bundle")

    assert again == files
    assert list(again) == sorted(files)


@given(order=st.permutations(list(FILES.items())))
def test_container_bytes_do_not_depend_on_order(order: list[tuple[str, bytes]]) -> None:
    assert write_container("bundle", dict(order)) == write_container("bundle", FILES)


def test_container_has_the_documented_layout() -> None:
    header = b"HOLDFAST" + b"\0\1" + b"\6bundle" + b"\0\0\0\1"
    header += b"\0\1a" + b"\0\0\0\0\0\0\0\2" + hashlib.sha256(b"hi").digest()

    assert write_container("bundle", {"a": b"hi"}) == header + hashlib.sha256(header).digest() + b"hi"


def test_container_any_flipped_bit_is_an_error() -> None:
    good = write_container("bundle", FILES)

    for position in range(len(good)):
        for bit in range(8):
            changed = bytearray(good)
            changed[position] ^= 1 << bit
            with pytest.raises(FormatError):
                read_container(bytes(changed), "bundle")


def test_container_any_truncation_is_an_error() -> None:
    good = write_container("bundle", FILES)

    for length in range(len(good)):
        with pytest.raises(FormatError):
            read_container(good[:length], "bundle")


@given(position=st.integers(0, 400), junk=st.binary(min_size=1, max_size=8))
def test_container_any_insertion_is_an_error(position: int, junk: bytes) -> None:
    good = write_container("bundle", FILES)
    changed = good[:position] + junk + good[position:]

    with pytest.raises(FormatError):
        read_container(changed, "bundle")


@given(data=st.binary(max_size=200))
def test_container_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_container(b"HOLDFAST\0\1\6bundle" + data, "bundle")


def test_container_changed_content_names_the_file_and_its_offsets() -> None:
    good = write_container("bundle", FILES)

    with pytest.raises(FormatError, match=rf"signature at offsets {len(good) - 3} to {len(good)} was changed"):
        read_container(good[:-1] + b"X", "bundle")


def test_container_of_another_kind_is_refused() -> None:
    with pytest.raises(FormatError, match="kind at offset 10 is 'evidence', expected 'bundle'"):
        read_container(write_container("evidence", FILES), "bundle")


def _forge(names: list[str], sizes: list[int] | None = None, count: int | None = None) -> bytes:
    """A container with a correct header digest over whatever is asked for."""
    header = b"HOLDFAST\0\1\6bundle" + struct.pack(">I", len(names) if count is None else count)
    for name, size in zip(names, sizes or [0] * len(names), strict=True):
        raw = name.encode()
        header += struct.pack(">H", len(raw)) + raw + struct.pack(">Q", size) + hashlib.sha256(b"").digest()
    return header + hashlib.sha256(header).digest()


BAD_NAMES = {
    "empty": "",
    "absolute": "/etc/passwd",
    "parent": "../x",
    "parent_inside": "a/../b",
    "dot": ".",
    "dot_inside": "a/./b",
    "double_slash": "a//b",
    "trailing_slash": "a/",
    "backslash": "a\\b",
    "nul": "a\0b",
    "newline": "a\n",
    "space": "a b",
    "not_ascii": "ä",
    "too_long": "a" * 256,
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_container_bad_name_is_refused_on_both_sides(name: str) -> None:
    with pytest.raises(FormatError):
        write_container("bundle", {name: b""})
    with pytest.raises(FormatError):
        read_container(_forge([name]), "bundle")


BAD_CONTAINERS = {
    "unsorted": (_forge(["b", "a"]), "not sorted"),
    "duplicate": (_forge(["a", "a"]), "not unique"),
    "file_is_a_folder": (_forge(["a", "a/b"]), "also the folder"),
    "more_files_declared_than_present": (_forge(["a"], count=2), "container name at offset 64"),
    "size_beyond_the_end": (_forge(["a"], [5]), "content of a at offset .* lacks 5 bytes"),
    "size_beyond_the_limit": (_forge(["a"], [2**63]), "at most"),
    "huge_count": (_forge(["a"], count=2**32 - 1), "at most"),
    "trailing_bytes": (_forge(["a"]) + b"\0", "1 bytes too many"),
    "version_2": (_forge(["a"]).replace(b"\0\1", b"\0\2", 1), "version at offset 8 is 2"),
    "no_magic": (b"PK\3\4" + b"\0" * 100, "not a container"),
    "empty": (b"", "cut off"),
}


@pytest.mark.parametrize(("data", "message"), BAD_CONTAINERS.values(), ids=BAD_CONTAINERS.keys())
def test_container_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_container(data, "bundle")


def test_container_forged_good_header_is_accepted() -> None:
    # shows that the cases above fail for their defect and not for the forging
    assert read_container(_forge(["a", "b/c"]), "bundle") == {"a": b"", "b/c": b""}


def test_container_limits_bound_every_size() -> None:
    data = write_container("bundle", FILES)

    for limits in (
        ContainerLimits(max_files=3),
        ContainerLimits(max_file_bytes=2),
        ContainerLimits(max_total_bytes=len(data) - 1),
    ):
        with pytest.raises(FormatError, match="at most"):
            read_container(data, "bundle", limits=limits)
    exact = ContainerLimits(max_files=4, max_file_bytes=3, max_total_bytes=len(data))
    assert read_container(data, "bundle", limits=exact) == dict(sorted(FILES.items()))


@pytest.mark.parametrize("kind", ["", "Bundle", "a b", "1", "x" * 33])
def test_container_bad_kind_is_refused(kind: str) -> None:
    with pytest.raises(FormatError, match="kind"):
        write_container(kind, {})


@given(
    files=st.lists(st.dictionaries(NAME, st.binary(max_size=5), max_size=3).filter(_is_tree), min_size=2, max_size=4)
)
def test_container_different_files_never_share_bytes(files: list[dict[str, bytes]]) -> None:
    for one, other in pairwise(files):
        assert (write_container("bundle", one) == write_container("bundle", other)) is (one == other)
