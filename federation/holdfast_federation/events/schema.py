"""Table of the events."""

from __future__ import annotations

# AUTOINCREMENT: an id is never given twice, so a reader that remembers the last one misses nothing
SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    body BLOB NOT NULL,
    utc_ns INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_kind ON events (kind, id);
"""
