"""Tables of the registry. Rows are added, never changed: what was published or said stays so."""

from __future__ import annotations

SCHEMA = """
CREATE TABLE IF NOT EXISTS bundles (
    digest TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    blob_sha256 TEXT NOT NULL UNIQUE,
    blob_size_bytes INTEGER NOT NULL,
    signed_by TEXT NOT NULL,
    author_key_ids TEXT NOT NULL,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    parent_digest TEXT NOT NULL DEFAULT '',
    ancestor_digest TEXT NOT NULL DEFAULT '',
    run_id TEXT NOT NULL DEFAULT '',
    change_norm REAL NOT NULL DEFAULT 0,
    added_utc_ns INTEGER NOT NULL,
    UNIQUE (name, version)
);
CREATE TABLE IF NOT EXISTS approvals (
    document_sha256 TEXT PRIMARY KEY,
    digest TEXT NOT NULL REFERENCES bundles (digest),
    key_id TEXT NOT NULL,
    decision TEXT NOT NULL,
    role TEXT NOT NULL,
    document BLOB NOT NULL,
    received_utc_ns INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS approvals_by_digest ON approvals (digest, received_utc_ns);
"""
