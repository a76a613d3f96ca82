"""The Merkle tree of RFC 9162 section 2.1: roots, inclusion proofs, consistency proofs, and their verification.

`MerkleTree` keeps every complete subtree hash in memory (about 64 bytes a leaf) and answers proofs; `CompactRange`
keeps O(log n) hashes and only appends. Verification needs neither: it is pure and works from bytes alone. SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from holdfast.errors import FormatError, TrustError

HASH_BYTES = 32
MAX_SIZE = 2**63 - 1  # sizes travel as signed 64-bit numbers
MAX_PROOF_HASHES = 64  # longer than the proof in any tree of MAX_SIZE leaves
EMPTY_ROOT = hashlib.sha256(b"").digest()  # RFC 9162 2.1.1: MTH({}) = HASH()


def leaf_hash(data: bytes) -> bytes:
    """RFC 9162 2.1.1: SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 9162 2.1.1: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class CompactRange:
    """The right edge of a tree: hashes of its complete subtrees, largest first. Appends; cannot prove.

    What a store keeps to go on after a restart: `size` and `hashes` are the whole state.
    """

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        """Go on from a stored state.

        Raises:
            FormatError: the number or the length of the hashes does not fit `size`.
        """
        self._hashes = list(hashes)
        self._size = size
        if not 0 <= size <= MAX_SIZE or len(self._hashes) != size.bit_count():
            raise FormatError(f"compact range of size {size} has {len(self._hashes)} hashes, expected one per set bit")
        _check_hashes(self._hashes)

    @property
    def size(self) -> int:
        return self._size

    @property
    def hashes(self) -> tuple[bytes, ...]:
        return tuple(self._hashes)

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash (of `leaf_hash`). O(1) on average."""
        _check_hashes((leaf,))
        node, size = leaf, self._size
        while size & 1:  # a complete subtree of the same height stands to the left
            node = node_hash(self._hashes.pop(), node)
            size >>= 1
        self._hashes.append(node)
        self._size += 1

    def root(self) -> bytes:
        """The tree's root hash (RFC 9162 2.1.1)."""
        return _fold(self._hashes)


class MerkleTree:
    """An append-only tree in memory that proves inclusion and consistency for every size it ever had."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        # levels[h][i] is the hash of the complete subtree over leaves [i * 2**h, (i + 1) * 2**h)
        self._levels: list[list[bytes]] = [[]]
        for leaf in leaves:
            self.append(leaf)

    @property
    def size(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> int:
        """Add one leaf hash (of `leaf_hash`); returns its index."""
        _check_hashes((leaf,))
        index = len(self._levels[0])
        self._levels[0].append(leaf)
        height, position = 0, index
        while position & 1:
            below = self._levels[height]
            height, position = height + 1, position >> 1
            if height == len(self._levels):
                self._levels.append([])
            self._levels[height].append(node_hash(below[-2], below[-1]))
        return index

    def leaf(self, index: int) -> bytes:
        """The leaf hash at `index`."""
        self._check_range(index, self.size)
        return self._levels[0][index]

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` leaves; of all of them without `size`.

        Raises:
            TrustError: the tree never had that size.
        """
        wanted = self.size if size is None else size
        self._check_size(wanted)
        return self._subtree(0, wanted)

    def compact_range(self) -> CompactRange:
        """The right edge, for a store."""
        size, start, hashes = self.size, 0, []
        for height in reversed(range(size.bit_length())):
            if size >> height & 1:
                hashes.append(self._levels[height][start >> height])
                start += 1 << height
        return CompactRange(size, hashes)

    def inclusion_proof(self, index: int, size: int) -> tuple[bytes, ...]:
        """PATH(index, D[size]) of RFC 9162 2.1.3.1: that leaf `index` is in the tree of the first `size` leaves.

        Raises:
            TrustError: there is no such leaf or size.
        """
        self._check_size(size)
        self._check_range(index, size)
        proof: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            split = start + _split(end - start)
            if index < split:
                proof.append(self._subtree(split, end))
                end = split
            else:
                proof.append(self._subtree(start, split))
                start = split
        return tuple(reversed(proof))

    def consistency_proof(self, old: int, new: int) -> tuple[bytes, ...]:
        """PROOF(old, D[new]) of RFC 9162 2.1.4.1: that the first `old` of `new` leaves are unchanged.

        Empty for old == new, and for old == 0, where there is nothing to prove.

        Raises:
            TrustError: not 0 <= old <= new <= size.
        """
        self._check_size(new)
        if not 0 <= old <= new:
            raise TrustError(f"no consistency proof from size {old} to {new}; the old size must not be larger")
        if old in {0, new}:
            return ()
        proof: list[bytes] = []
        start, end = 0, new
        while old != end:
            split = start + _split(end - start)
            if old <= split:
                proof.append(self._subtree(split, end))
                end = split
            else:
                proof.append(self._subtree(start, split))
                start = split
        if start > 0:  # RFC 9162 2.1.4.1: SUBPROOF's b is false, so the verifier cannot know this hash
            proof.append(self._subtree(start, end))
        return tuple(reversed(proof))

    def _subtree(self, start: int, end: int) -> bytes:
        """The hash over leaves [start, end); `start` is a multiple of the largest power of two below the length."""
        hashes, position = [], start
        for height in reversed(range((end - start).bit_length())):
            if (end - start) >> height & 1:
                hashes.append(self._levels[height][position >> height])
                position += 1 << height
        return _fold(hashes)

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise TrustError(f"tree size {size} is not one of this tree's, which has {self.size} leaves")

    def _check_range(self, index: int, size: int) -> None:
        if not 0 <= index < size:
            raise TrustError(f"leaf {index} is not in a tree of {size} leaves")


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Return if `proof` shows the leaf hash `leaf` at `index` of the tree with `size` leaves and `root`.

    The algorithm of RFC 9162 2.1.3.2.

    Raises:
        TrustError: it does not.
        FormatError: a hash is not 32 bytes, or the proof is too long for any tree.
    """
    _check_proof((leaf, root), proof)
    if not 0 <= index < size <= MAX_SIZE:
        raise TrustError(f"leaf {index} is not in a tree of {size} leaves")
    first, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise TrustError(f"inclusion proof for leaf {index} of {size} is too long: {len(proof)} hashes")
        if first & 1 or first == last:
            node = node_hash(sibling, node)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        first, last = first >> 1, last >> 1
    if last != 0:
        raise TrustError(f"inclusion proof for leaf {index} of {size} is too short: {len(proof)} hashes")
    if node != root:
        raise TrustError(f"leaf {index} is not what the log of {size} leaves holds there: the root hashes differ")


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Return if `proof` shows that the tree of `new` leaves begins with the tree of `old` leaves.

    The algorithm of RFC 9162 2.1.4.2. An empty old tree is the beginning of every tree.

    Raises:
        TrustError: it does not: the log forked or was cut.
        FormatError: a hash is not 32 bytes, or the proof is too long for any tree.
    """
    _check_proof((old_root, new_root), proof)
    if not 0 <= old <= new <= MAX_SIZE:
        raise TrustError(f"log went back from {old} to {new} leaves")
    if old in {0, new}:
        _verify_trivial(old, new, proof, old_root, new_root)
        return
    if not proof:
        raise TrustError(f"consistency proof from {old} to {new} leaves is empty")
    hashes = list(proof) if old & (old - 1) else [old_root, *proof]  # step 2: old is a power of two
    first, last = old - 1, new - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    old_node = new_node = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise TrustError(f"consistency proof from {old} to {new} leaves is too long: {len(proof)} hashes")
        if first & 1 or first == last:
            old_node, new_node = node_hash(sibling, old_node), node_hash(sibling, new_node)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            new_node = node_hash(new_node, sibling)
        first, last = first >> 1, last >> 1
    if last != 0:
        raise TrustError(f"consistency proof from {old} to {new} leaves is too short: {len(proof)} hashes")
    if (old_node, new_node) != (old_root, new_root):
        raise TrustError(f"the log of {new} leaves does not begin with the log of {old} leaves: it forked")


def _verify_trivial(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    if proof:
        raise TrustError(f"consistency proof from {old} to {new} leaves has {len(proof)} hashes, expected none")
    if old == 0 and old_root != EMPTY_ROOT:
        raise TrustError("the root of an empty log is not the hash of nothing")
    if old == new and old_root != new_root:
        raise TrustError(f"two different logs of {new} leaves: it forked")


def _split(count: int) -> int:
    """The largest power of two below `count` (> 1): k of RFC 9162 2.1.1."""
    return 1 << (count - 1).bit_length() - 1


def _fold(hashes: Sequence[bytes]) -> bytes:
    """Join complete subtrees, largest first, from the right."""
    if not hashes:
        return EMPTY_ROOT
    node = hashes[-1]
    for left in reversed(hashes[:-1]):
        node = node_hash(left, node)
    return node


def _check_proof(ends: Sequence[bytes], proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_PROOF_HASHES:
        raise FormatError(f"proof has {len(proof)} hashes, at most {MAX_PROOF_HASHES} can be needed")
    _check_hashes(ends)
    _check_hashes(proof)


def _check_hashes(hashes: Iterable[bytes]) -> None:
    for each in hashes:
        if len(each) != HASH_BYTES:
            raise FormatError(f"hash has {len(each)} bytes, expected {HASH_BYTES}")
