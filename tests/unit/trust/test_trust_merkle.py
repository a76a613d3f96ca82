"""The Merkle tree against published vectors and against the definitions of RFC 9162, taken word by word."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import FormatError, HoldfastError, TrustError
from holdfast.trust.merkle import (
    EMPTY_ROOT,
    CompactRange,
    MerkleTree,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

MAX_EXHAUSTIVE = 40

# Published vectors: google/certificate-transparency, merkle_tree_test.cc (inputs, roots and proofs of the 8-leaf tree).
CT_INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


# The oracle: RFC 9162 2.1 as it is written, recursive, over lists of data, without any of our code.
def naive_root(data: list[bytes]) -> bytes:
    if not data:
        return hashlib.sha256(b"").digest()
    if len(data) == 1:
        return hashlib.sha256(b"\0" + data[0]).digest()
    k = naive_split(len(data))
    return hashlib.sha256(b"\1" + naive_root(data[:k]) + naive_root(data[k:])).digest()


def naive_split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def naive_path(m: int, data: list[bytes]) -> list[bytes]:
    if len(data) == 1:
        return []
    k = naive_split(len(data))
    if m < k:
        return [*naive_path(m, data[:k]), naive_root(data[k:])]
    return [*naive_path(m - k, data[k:]), naive_root(data[:k])]


def naive_subproof(m: int, data: list[bytes], b: bool) -> list[bytes]:
    if m == len(data):
        return [] if b else [naive_root(data)]
    k = naive_split(len(data))
    if m <= k:
        return [*naive_subproof(m, data[:k], b), naive_root(data[k:])]
    return [*naive_subproof(m - k, data[k:], False), naive_root(data[:k])]


DATA = [b"leaf %d" % index for index in range(MAX_EXHAUSTIVE)]
TREE = MerkleTree(leaf_hash(data) for data in DATA)
ROOTS = [naive_root(DATA[:size]) for size in range(MAX_EXHAUSTIVE + 1)]


def test_roots_are_the_published_ones() -> None:
    tree = MerkleTree()

    assert tree.root().hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for data, root in zip(CT_INPUTS, CT_ROOTS, strict=True):
        tree.append(leaf_hash(bytes.fromhex(data)))
        assert tree.root().hex() == root


def test_proofs_are_the_published_ones() -> None:
    tree = MerkleTree(leaf_hash(bytes.fromhex(data)) for data in CT_INPUTS)

    assert [node.hex() for node in tree.inclusion_proof(0, 8)] == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]
    assert [node.hex() for node in tree.consistency_proof(6, 8)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


def test_every_root_and_frontier_up_to_40_equals_the_definition() -> None:
    compact = CompactRange()

    for size in range(MAX_EXHAUSTIVE + 1):
        assert TREE.root(size) == compact.root() == ROOTS[size]
        assert MerkleTree(leaf_hash(data) for data in DATA[:size]).compact_range().hashes == compact.hashes
        if size < MAX_EXHAUSTIVE:
            compact.append(leaf_hash(DATA[size]))


def test_every_inclusion_proof_up_to_40_equals_the_definition_and_verifies() -> None:
    for size in range(1, MAX_EXHAUSTIVE + 1):
        for index in range(size):
            proof = TREE.inclusion_proof(index, size)
            assert list(proof) == naive_path(index, DATA[:size])
            verify_inclusion(leaf_hash(DATA[index]), index, size, proof, ROOTS[size])


def test_every_consistency_proof_up_to_40_equals_the_definition_and_verifies() -> None:
    for new in range(MAX_EXHAUSTIVE + 1):
        verify_consistency(0, new, TREE.consistency_proof(0, new), ROOTS[0], ROOTS[new])
        for old in range(1, new + 1):
            proof = TREE.consistency_proof(old, new)
            assert list(proof) == naive_subproof(old, DATA[:new], True)
            verify_consistency(old, new, proof, ROOTS[old], ROOTS[new])


def test_every_inclusion_proof_is_refused_for_another_index_or_root() -> None:
    for size in range(2, 18):
        for index in range(size):
            proof = TREE.inclusion_proof(index, size)
            for other in range(size):
                if other != index:
                    with pytest.raises(TrustError):
                        verify_inclusion(leaf_hash(DATA[index]), other, size, proof, ROOTS[size])
            with pytest.raises(TrustError, match="root hashes differ"):
                verify_inclusion(leaf_hash(DATA[index]), index, size, proof, ROOTS[size - 1])


def test_proof_of_a_smaller_tree_is_refused_for_a_larger_one() -> None:
    # the hashes alone would fit: only the length of the proof tells the sizes apart
    with pytest.raises(TrustError, match="too short"):
        verify_consistency(2, 8, TREE.consistency_proof(2, 4), ROOTS[2], ROOTS[4])
    with pytest.raises(TrustError, match="too short"):
        verify_inclusion(leaf_hash(DATA[1]), 1, 8, TREE.inclusion_proof(1, 4), ROOTS[4])


def test_proof_of_a_larger_tree_is_refused_for_a_smaller_one() -> None:
    with pytest.raises(TrustError, match="too long"):
        verify_consistency(2, 4, TREE.consistency_proof(2, 8), ROOTS[2], ROOTS[8])
    with pytest.raises(TrustError, match="too long"):
        verify_inclusion(leaf_hash(DATA[1]), 1, 4, TREE.inclusion_proof(1, 8), ROOTS[8])


@st.composite
def _mutated(draw: st.DrawFn, proof: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The proof with one hash flipped, dropped, doubled, added, or two swapped."""
    hashes = list(proof)
    kind = draw(st.sampled_from(["flip", "drop", "double", "add", "swap"] if hashes else ["add"]))
    position = draw(st.integers(0, max(0, len(hashes) - 1)))
    if kind == "flip":
        changed = bytearray(hashes[position])
        changed[draw(st.integers(0, 31))] ^= draw(st.integers(1, 255))
        hashes[position] = bytes(changed)
    elif kind == "drop":
        del hashes[position]
    elif kind == "double":
        hashes.insert(position, hashes[position])
    elif kind == "add":
        hashes.insert(draw(st.integers(0, len(hashes))), draw(st.binary(min_size=32, max_size=32)))
    else:
        other = draw(st.integers(0, len(hashes) - 1))
        hashes[position], hashes[other] = hashes[other], hashes[position]
    return tuple(hashes)


@given(data=st.data())
def test_any_mutated_inclusion_proof_is_refused(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, MAX_EXHAUSTIVE))
    index = data.draw(st.integers(0, size - 1))
    proof = TREE.inclusion_proof(index, size)
    mutated = data.draw(_mutated(proof).filter(lambda changed: changed != proof))

    with pytest.raises(TrustError):
        verify_inclusion(leaf_hash(DATA[index]), index, size, mutated, ROOTS[size])


@given(data=st.data())
def test_any_mutated_consistency_proof_is_refused(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, MAX_EXHAUSTIVE))
    old = data.draw(st.integers(0, new))
    proof = TREE.consistency_proof(old, new)
    mutated = data.draw(_mutated(proof).filter(lambda changed: changed != proof))

    with pytest.raises(TrustError):
        verify_consistency(old, new, mutated, ROOTS[old], ROOTS[new])


@given(data=st.data())
def test_a_rewritten_leaf_breaks_consistency(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, MAX_EXHAUSTIVE))
    old = data.draw(st.integers(1, new - 1))
    rewritten = data.draw(st.integers(0, old - 1))
    fork = MerkleTree(leaf_hash(b"forged" if index == rewritten else DATA[index]) for index in range(new))

    with pytest.raises(TrustError, match="forked"):
        verify_consistency(old, new, fork.consistency_proof(old, new), ROOTS[old], fork.root())


@given(
    numbers=st.tuples(st.integers(-2, 70), st.integers(-2, 70)),
    proof=st.lists(st.binary(min_size=30, max_size=33), max_size=8),
    ends=st.tuples(st.binary(max_size=33), st.binary(max_size=33)),
)
def test_random_proofs_are_refused(numbers: tuple[int, int], proof: list[bytes], ends: tuple[bytes, bytes]) -> None:
    with pytest.raises(HoldfastError):
        verify_inclusion(ends[0], *numbers, proof, ends[1] + b"x")
    with pytest.raises(HoldfastError):
        verify_consistency(*numbers, proof, ends[0], ends[1] + b"x")


def test_leaf_and_node_hashes_are_separate() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")

    assert node_hash(left, right) != leaf_hash(left + right)


NODE = b"\0" * 32
BAD_CALLS = {
    "index_at_size": lambda: verify_inclusion(NODE, 3, 3, [], NODE),
    "index_negative": lambda: verify_inclusion(NODE, -1, 3, [], NODE),
    "size_beyond_64_bits": lambda: verify_inclusion(NODE, 0, 2**64, [NODE] * 64, NODE),
    "log_shrank": lambda: verify_consistency(5, 4, [], NODE, NODE),
    "same_size_other_root": lambda: verify_consistency(4, 4, [], NODE, b"\1" * 32),
    "same_size_with_proof": lambda: verify_consistency(4, 4, [NODE], NODE, NODE),
    "empty_log_with_a_root": lambda: verify_consistency(0, 4, [], NODE, NODE),
    "empty_proof": lambda: verify_consistency(2, 4, [], NODE, NODE),
    "prove_beyond_size": lambda: TREE.inclusion_proof(0, MAX_EXHAUSTIVE + 1),
    "prove_missing_leaf": lambda: TREE.inclusion_proof(3, 3),
    "prove_backwards": lambda: TREE.consistency_proof(4, 3),
    "root_beyond_size": lambda: TREE.root(MAX_EXHAUSTIVE + 1),
    "leaf_beyond_size": lambda: TREE.leaf(MAX_EXHAUSTIVE),
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_impossible_request_is_a_trust_error(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TrustError):
        call()


BAD_FORMS = {
    "short_leaf": lambda: verify_inclusion(b"x", 0, 1, [], NODE),
    "short_root": lambda: verify_inclusion(NODE, 0, 1, [], b""),
    "short_proof_hash": lambda: verify_inclusion(NODE, 0, 2, [b"x"], NODE),
    "endless_proof": lambda: verify_inclusion(NODE, 0, 2**62, [NODE] * 65, NODE),
    "append_short_hash": lambda: MerkleTree().append(b"data, not a hash"),
    "frontier_short_hash": lambda: CompactRange(1, [b""]),
    "frontier_too_few": lambda: CompactRange(3, [NODE]),
    "frontier_negative": lambda: CompactRange(-1, [NODE]),
}


@pytest.mark.parametrize("call", BAD_FORMS.values(), ids=BAD_FORMS.keys())
def test_malformed_hashes_are_a_format_error(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FormatError):
        call()


@given(sizes=st.tuples(st.integers(0, MAX_EXHAUSTIVE), st.integers(0, MAX_EXHAUSTIVE)))
def test_compact_range_goes_on_after_a_restart(sizes: tuple[int, int]) -> None:
    first, second = min(sizes), max(sizes)
    stored = MerkleTree(leaf_hash(data) for data in DATA[:first]).compact_range()

    restored = CompactRange(stored.size, stored.hashes)
    for data in DATA[first:second]:
        restored.append(leaf_hash(data))

    assert (restored.size, restored.root()) == (second, ROOTS[second])


def test_empty_root_is_the_hash_of_nothing() -> None:
    assert CompactRange().root() == EMPTY_ROOT == ROOTS[0]
