"""The Merkle tree of RFC 9162 over a table of full-subtree hashes: roots and proofs in O(log n) reads.

Pure but for the connection it is handed. The hashing itself is `holdfast.trust.merkle`, so that what is stored here is
what devices and auditors verify.
"""

from __future__ import annotations

import sqlite3

from holdfast.errors import TrustError
from holdfast.trust.merkle import EMPTY_ROOT, leaf_hash, node_hash


def size(cx: sqlite3.Connection) -> int:
    """How many entries the log has."""
    last = cx.execute("SELECT max(position) FROM ledger_nodes WHERE level = 0").fetchone()[0]
    return 0 if last is None else int(last) + 1


def append(cx: sqlite3.Connection, entry: bytes) -> int:
    """Add a leaf and every full subtree that it completes. Returns its position."""
    index = size(cx)
    level, position, digest = 0, index, leaf_hash(entry)
    _put(cx, level, position, digest)
    while position % 2 == 1:
        digest = node_hash(_get(cx, level, position - 1), digest)
        level, position = level + 1, position // 2
        _put(cx, level, position, digest)
    return index


def root(cx: sqlite3.Connection, tree_size: int) -> bytes:
    """The root over the first `tree_size` entries."""
    return _range_hash(cx, 0, tree_size) if tree_size else EMPTY_ROOT


def inclusion_proof(cx: sqlite3.Connection, index: int, tree_size: int) -> tuple[bytes, ...]:
    """The hashes that lead from entry `index` to the root of `tree_size` entries (RFC 9162 2.1.3.1).

    Raises:
        TrustError: there is no such entry or size in this log.
    """
    have = size(cx)
    if not 0 <= index < tree_size <= have:
        raise TrustError(f"no inclusion proof of entry {index} in {tree_size} entries; the log has {have}")
    return _path(cx, index, 0, tree_size)


def consistency_proof(cx: sqlite3.Connection, old: int, new: int) -> tuple[bytes, ...]:
    """The hashes that show that the first `old` entries of `new` are unchanged (RFC 9162 2.1.4.1).

    Raises:
        TrustError: there are no such sizes in this log.
    """
    have = size(cx)
    if not 0 <= old <= new <= have:
        raise TrustError(f"no consistency proof from {old} to {new} entries; the log has {have}")
    if old in (0, new):
        return ()
    return _subproof(cx, old, (0, new), complete=True)


def _path(cx: sqlite3.Connection, index: int, start: int, stop: int) -> tuple[bytes, ...]:
    if stop - start == 1:
        return ()
    middle = start + _split(stop - start)
    if index < middle:
        return (*_path(cx, index, start, middle), _range_hash(cx, middle, stop))
    return (*_path(cx, index, middle, stop), _range_hash(cx, start, middle))


def _subproof(cx: sqlite3.Connection, old: int, span: tuple[int, int], *, complete: bool) -> tuple[bytes, ...]:
    """`complete`: the old tree is a whole subtree whose root the verifier already knows."""
    start, stop = span
    if old == stop:
        return () if complete else (_range_hash(cx, start, stop),)
    middle = start + _split(stop - start)
    if old <= middle:
        return (*_subproof(cx, old, (start, middle), complete=complete), _range_hash(cx, middle, stop))
    return (*_subproof(cx, old, (middle, stop), complete=False), _range_hash(cx, start, middle))


def _range_hash(cx: sqlite3.Connection, start: int, stop: int) -> bytes:
    count = stop - start
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return _get(cx, level, start >> level)
    middle = start + _split(count)
    return node_hash(_range_hash(cx, start, middle), _range_hash(cx, middle, stop))


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def _get(cx: sqlite3.Connection, level: int, position: int) -> bytes:
    row = cx.execute("SELECT hash FROM ledger_nodes WHERE level = ? AND position = ?", (level, position)).fetchone()
    if row is None:
        raise TrustError(f"the ledger lacks node {position} of level {level}; restore the database from a backup")
    return bytes(row[0])


def _put(cx: sqlite3.Connection, level: int, position: int, digest: bytes) -> None:
    cx.execute("INSERT INTO ledger_nodes (level, position, hash) VALUES (?, ?, ?)", (level, position, digest))
