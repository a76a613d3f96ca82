"""The cheats of the demonstration: good enough to fool whoever has no root keys, and nobody else."""

from __future__ import annotations

import random

import pytest
from tests.fakes.evidence_world import World

from holdfast.errors import EvidenceError
from holdfast.evidence.layout import KIND
from holdfast.evidence.verify import verify_evidence
from holdfast.wire.container import read_spans
from holdfast_federation.demo.forgery import file_at, flip_a_byte, forge

CONSISTENT_ONLY = "consistent, NOT authenticated"


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def honest(world: World) -> bytes:
    return world.export(scorecard=None)


def test_the_honest_file_is_authenticated(world: World, honest: bytes) -> None:
    assert str(verify_evidence(honest, world.roots())) == "consistent and authenticated"


def test_a_forgery_is_consistent_without_roots_and_refused_with_them(world: World, honest: bytes) -> None:
    forged = forge(honest)

    alone, held_to_roots = verify_evidence(forged), verify_evidence(forged, world.roots())

    assert (str(alone), alone.findings) == (CONSISTENT_ONLY, ())
    assert str(held_to_roots) == CONSISTENT_ONLY
    roles = {claimed.role for claimed in held_to_roots.not_roots}
    assert "ledger" in roles  # and that key vouches for every device


def test_a_forgery_says_what_the_forger_wants(honest: bytes) -> None:
    before, after = verify_evidence(honest).figures, verify_evidence(forge(honest)).figures

    assert before is not None
    assert after is not None
    assert [each.accuracy.share for each in before.evaluation.values()] == [0.65, 0.925]
    assert [each.accuracy.share for each in after.evaluation.values()] == [1.0, 1.0]


def test_a_forgery_that_keeps_the_real_ledger_key_is_not_even_consistent(world: World, honest: bytes) -> None:
    # the control: without signing everything again the lie is found by anybody
    entries = list(world.log)
    forged_world = World(keys=world.keys, log=entries, promises=world.promises)
    other = World()
    forged_world.log[-2] = other.log[-2]

    assert not verify_evidence(forged_world.export(scorecard=None)).consistent


def test_nothing_to_forge_is_said(world: World) -> None:
    empty = World(keys=world.keys, log=world.log[:4])

    with pytest.raises(EvidenceError, match="no evaluation that could be forged"):
        forge(empty.export(scorecard=None))


def test_one_flipped_bit_is_found_and_its_file_named(world: World, honest: bytes) -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    for offset in (0, len(honest) - 1, *(rng.randrange(len(honest)) for _ in range(30))):
        flipped = flip_a_byte(honest, offset)

        verdict = verify_evidence(flipped, world.roots())

        where = f"offset {offset}, seed {seed}"
        assert sum(a != b for a, b in zip(flipped, honest, strict=True)) == 1, where
        assert not verdict.consistent, where
        assert file_at(honest, offset) in str(verdict.findings[0]), where


def test_file_at_names_the_file_that_an_offset_lies_in(honest: bytes) -> None:
    spans = read_spans(honest, KIND)

    for span in spans:
        if span.size_bytes:
            assert file_at(honest, span.offset) == span.name
            assert file_at(honest, span.offset + span.size_bytes - 1) == span.name
    assert file_at(honest, 0) == "container"
