"""Table of the join tokens."""

from __future__ import annotations

# Only a hash of the secret is stored: who reads the database cannot enrol.
SCHEMA = """
CREATE TABLE IF NOT EXISTS join_tokens (
    token_id TEXT PRIMARY KEY,
    secret_sha256 BLOB NOT NULL,
    site TEXT NOT NULL,
    name TEXT NOT NULL,
    created_utc_ns INTEGER NOT NULL,
    expires_utc_ns INTEGER NOT NULL,
    used_utc_ns INTEGER,
    used_by TEXT NOT NULL DEFAULT ''
);
"""
