"""A fetch goes on where it stopped, takes no byte too many, and keeps nothing that has another hash."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from tests.fakes.bundles import BlobServer

from holdfast.errors import LinkError, StateError, TrustError
from holdfast.models.fetch import fetch_blob
from holdfast.wire.messages import FetchRequest, FetchResponse

BLOB = bytes(range(256)) * 40
SHA256 = hashlib.sha256(BLOB).hexdigest()


def test_fetch_brings_the_whole_blob(tmp_path: Path) -> None:
    server = BlobServer(BLOB)

    fetch_blob(server, SHA256, len(BLOB), tmp_path / "part")

    assert (tmp_path / "part").read_bytes() == BLOB
    assert len(server.requests) == 11


def test_fetch_goes_on_where_the_line_broke(tmp_path: Path) -> None:
    server = BlobServer(BLOB)

    def breaks_at_5000(request: FetchRequest) -> FetchResponse:
        if request.offset >= 5_000:
            raise LinkError("gone")
        return server(request)

    with pytest.raises(LinkError):
        fetch_blob(breaks_at_5000, SHA256, len(BLOB), tmp_path / "part")
    server.requests.clear()
    fetch_blob(server, SHA256, len(BLOB), tmp_path / "part")

    assert server.requests[0].offset == 5_000
    assert (tmp_path / "part").read_bytes() == BLOB


@pytest.mark.parametrize("part", [bytes(5_000), BLOB + b"too long", bytes(len(BLOB))])
def test_fetch_starts_again_when_the_part_is_damaged(tmp_path: Path, part: bytes) -> None:
    (tmp_path / "part").write_bytes(part)

    fetch_blob(BlobServer(BLOB), SHA256, len(BLOB), tmp_path / "part")

    assert (tmp_path / "part").read_bytes() == BLOB


def test_fetch_of_other_bytes_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    other = bytes(len(BLOB))

    def lies(request: FetchRequest) -> FetchResponse:
        return FetchResponse(len(other), other[request.offset : request.offset + request.max_bytes])

    with pytest.raises(TrustError, match="has another hash"):
        fetch_blob(lies, SHA256, len(BLOB), tmp_path / "part")

    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("answer", [FetchResponse(len(BLOB), b""), FetchResponse(len(BLOB), bytes(len(BLOB) + 1))])
def test_fetch_refuses_a_piece_of_wrong_size(tmp_path: Path, answer: FetchResponse) -> None:
    with pytest.raises(LinkError, match="asked for"):
        fetch_blob(lambda _: answer, SHA256, len(BLOB), tmp_path / "part")


def test_fetch_refuses_another_total_than_was_signed(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="were signed for"):
        fetch_blob(lambda _: FetchResponse(2**50, b"x"), SHA256, len(BLOB), tmp_path / "part")


def test_fetch_onto_a_full_or_missing_disk_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot write"):
        fetch_blob(BlobServer(BLOB), SHA256, len(BLOB), tmp_path / "absent" / "part")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_fetch_onto_a_full_disk_says_so(tmp_path: Path) -> None:
    os.symlink("/dev/full", tmp_path / "part")

    with pytest.raises(StateError, match="No space left"):
        fetch_blob(BlobServer(BLOB), SHA256, len(BLOB), tmp_path / "part")
