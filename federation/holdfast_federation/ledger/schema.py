"""Tables of the ledger: the entries as they are hashed, and the hash of every full subtree."""

from __future__ import annotations

# Node (level, position) is the root over entries position * 2^level .. (position + 1) * 2^level - 1. Only full
# subtrees are stored, about two rows an entry, none is ever changed; every root and proof is read from them.
SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger_entries (
    position INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    recorded_utc_ns INTEGER NOT NULL,
    entry BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS ledger_entries_by_subject ON ledger_entries (subject, kind, position);
CREATE TABLE IF NOT EXISTS ledger_nodes (
    level INTEGER NOT NULL,
    position INTEGER NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (level, position)
) WITHOUT ROWID;
"""
