"""Damage to the bytes of an evidence file: all of it is found, and one changed byte is named."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.evidence_world import World

from holdfast.errors import EvidenceError, FormatError, HoldfastError
from holdfast.evidence.layout import (
    KIND,
    ClaimedKey,
    canonical_json,
    parse_files,
    read_evidence,
    read_frames,
    write_evidence,
    write_frames,
)
from holdfast.evidence.locate import find_changed_byte, locate_change
from holdfast.evidence.verify import verify_evidence
from holdfast.wire.container import read_container, read_spans, write_container

WORLD = World()
SEALED = WORLD.export()
SPANS = read_spans(SEALED, KIND)
FILES = read_container(SEALED, KIND)


def flipped(data: bytes, offset: int, mask: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :]


def test_evidence_round_trip_gives_the_same_bytes() -> None:
    assert write_evidence(read_evidence(SEALED)) == SEALED


def test_every_single_changed_byte_is_found() -> None:
    unnoticed = []
    for offset in range(len(SEALED)):
        try:
            read_evidence(flipped(SEALED, offset, 1 + offset % 255))
            unnoticed.append(offset)
        except HoldfastError:
            pass

    assert unnoticed == []


@pytest.mark.parametrize("span", SPANS, ids=lambda span: span.name)
def test_one_changed_byte_is_named_in_every_file(span) -> None:  # type: ignore[no-untyped-def]  # a FileSpan
    chance = random.Random(span.name)
    for _ in range(3):
        offset = span.offset + chance.randrange(span.size_bytes)

        verdict = verify_evidence(flipped(SEALED, offset, chance.randrange(1, 256)), WORLD.roots())

        assert not verdict.consistent
        assert not verdict.authenticated
        place = verdict.findings[0].place
        assert (place.file, place.offset) == (span.name, offset)
        assert f"it was sealed as 0x{SEALED[offset]:02x}" in verdict.findings[0].message


def test_a_changed_byte_of_a_record_is_named_by_device_seq_and_field() -> None:
    entry = WORLD.log[2]  # the first record of device n1: its policy
    offset = SEALED.index(entry) + entry.index(b"boot-1")

    finding = verify_evidence(flipped(SEALED, offset, 0x20)).findings[0]

    assert (finding.place.entry, finding.place.device_id, finding.place.seq) == (2, "n1", 1)
    assert finding.place.field == "payload"
    assert finding.place.offset == offset


def test_a_changed_byte_of_the_header_is_named() -> None:
    offset = SEALED.index(b"figures.json") + 11

    place = verify_evidence(flipped(SEALED, offset, 0x07)).findings[0].place

    assert (place.file, place.offset) == ("(header)", offset)


def test_two_changed_bytes_are_named_by_their_entry() -> None:
    offset = SEALED.index(WORLD.log[2]) + 20
    damaged = flipped(flipped(SEALED, offset, 1), offset + 9, 1)

    located = locate_change(damaged)

    assert located is not None
    assert located[0].entry == 2
    assert not verify_evidence(damaged).consistent


def test_a_log_of_one_entry_is_searched_too() -> None:
    small = World()
    small.log, small.promises = small.log[:1], []
    sealed = small.export(scorecard=None)
    offset = sealed.index(small.log[0]) + 3

    place = verify_evidence(flipped(sealed, offset, 0xFF)).findings[0].place

    assert (place.file, place.entry, place.offset) == ("entries.bin", 0, offset)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(FILES.keys() - {"meta.json"})), st.randoms(use_true_random=False), st.integers(1, 255))
def test_a_changed_byte_that_is_sealed_again_is_found(name: str, chance: random.Random, mask: int) -> None:
    content = flipped(FILES[name], chance.randrange(len(FILES[name])), mask)

    verdict = verify_evidence(write_container(KIND, FILES | {name: content}), WORLD.roots())

    # a changed definition of a scorecard changes what is asked, and so perhaps no answer
    if name != "scorecard.json":
        assert not verdict.authenticated
        assert verdict.findings or verdict.not_roots


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_verdict(data: bytes) -> None:
    assert not verify_evidence(data).consistent


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.binary(max_size=200))
def test_any_content_of_any_file_ends_in_a_verdict(name: str, content: bytes) -> None:
    verify_evidence(write_container(KIND, FILES | {name: content}), WORLD.roots())


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_frames_round_trip(items: list[bytes]) -> None:
    assert read_frames(write_frames(items), "x", len(items), max_count=20) == tuple(items)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x00\x00", "cut off at its offset 0"),
        (b"\x00\x00\x00\x05abc", "at its offset 0 has 5 bytes, 3 are left"),
        (b"\xff\xff\xff\xff", "has 4294967295 bytes"),
        (b"\x00\x00\x00\x00" * 3, "more than 2 items"),
    ],
    ids=["half_a_length", "content_cut_off", "length_too_large", "too_many"],
)
def test_frames_refuse(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_frames(data, "x", max_count=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": None}, "lacks"),
        ({"surplus.txt": b""}, "unknown files"),
        ({"meta.json": FILES["meta.json"] + b" "}, "canonical"),
        ({"meta.json": b"[]"}, "fields"),
        ({"meta.json": canonical_json({"schema": "x", "origin": "o", "exported_utc_ns": 0, "tree_size": 0})}, "schema"),
        ({"proofs.bin": FILES["proofs.bin"] + b"\x00"}, "too many"),
        ({"proofs.bin": FILES["proofs.bin"][:-1]}, "cut off"),
        ({"proofs.bin": b"\xff" * 10}, "damaged"),
        ({"keys/ledger.pub": b"no key"}, "PEM"),
        ({"keys/ledger.pub": FILES["keys/ledger.pub"] + b"\n"}, "canonical"),
        ({"keys/king.pub": FILES["keys/ledger.pub"]}, "no key file"),
        ({"checkpoint": b"\xff"}, "UTF-8"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_reading_refuses(change: dict[str, bytes | None], message: str) -> None:
    files = {name: data for name, data in (FILES | change).items() if data is not None}

    with pytest.raises(FormatError, match=message):
        parse_files(files)


def test_meta_with_more_entries_than_allowed_is_refused() -> None:
    meta = {"schema": "holdfast/evidence/v1", "origin": "o", "exported_utc_ns": 0, "tree_size": 2**40}

    with pytest.raises(FormatError, match="at most"):
        parse_files(FILES | {"meta.json": canonical_json(meta)})


@pytest.mark.parametrize("name", ["../escape", "a b", "x" * 200], ids=["folder", "blank", "too_long"])
def test_writing_refuses_a_key_name(name: str) -> None:
    evidence = read_evidence(SEALED)
    key = ClaimedKey("site", name, evidence.keys[0].key)

    with pytest.raises(EvidenceError, match="not allowed"):
        write_evidence(type(evidence)("o", 0, 0, "", (), (), (key,), b"{}"))


def test_find_changed_byte_gives_up_on_large_content() -> None:
    assert find_changed_byte(bytes(100_000), lambda digest: True) is None
