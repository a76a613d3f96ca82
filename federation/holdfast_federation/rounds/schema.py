"""Tables of the rounds: runs, their offers, who answered what, and who took part in each step."""

from __future__ import annotations

SCHEMA = """
CREATE TABLE IF NOT EXISTS rounds_runs (
    run_id TEXT PRIMARY KEY,
    spec TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    round INTEGER NOT NULL DEFAULT 0,
    candidate_digest TEXT NOT NULL DEFAULT '',
    event_id INTEGER NOT NULL,
    created_utc_ns INTEGER NOT NULL,
    changed_utc_ns INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS rounds_offers (
    offer_sha256 BLOB PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES rounds_runs (run_id),
    round INTEGER NOT NULL,
    step TEXT NOT NULL,
    envelope BLOB NOT NULL,
    deadline_utc_ns INTEGER NOT NULL,
    is_open INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE INDEX IF NOT EXISTS rounds_offers_of_run ON rounds_offers (run_id, is_open);
CREATE TABLE IF NOT EXISTS rounds_members (
    run_id TEXT NOT NULL REFERENCES rounds_runs (run_id),
    device_id TEXT NOT NULL,
    answer TEXT NOT NULL DEFAULT 'invited',
    reason_code TEXT NOT NULL DEFAULT '',
    policy_rule TEXT NOT NULL DEFAULT '',
    answered_utc_ns INTEGER,
    PRIMARY KEY (run_id, device_id)
) STRICT;
CREATE TABLE IF NOT EXISTS rounds_parts (
    run_id TEXT NOT NULL REFERENCES rounds_runs (run_id),
    round INTEGER NOT NULL,
    step TEXT NOT NULL,
    device_id TEXT NOT NULL,
    state TEXT NOT NULL,
    reason_code TEXT NOT NULL DEFAULT '',
    sample_count INTEGER NOT NULL DEFAULT 0,
    norm REAL NOT NULL DEFAULT 0,
    metrics TEXT NOT NULL DEFAULT '{}',
    changed_utc_ns INTEGER NOT NULL,
    PRIMARY KEY (run_id, round, step, device_id)
) STRICT;
CREATE TABLE IF NOT EXISTS rounds_nodes (
    device_id TEXT PRIMARY KEY,
    public_key TEXT NOT NULL,
    node_id TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS rounds_schedule (
    name TEXT PRIMARY KEY,
    last_started_utc_ns INTEGER NOT NULL
) STRICT;
"""
