"""Tables of what devices reported: the signed records themselves, and what the fleet view reads out of them."""

from __future__ import annotations

# `records` is the truth and is never changed; `windows`, `traffic` and `answers` can be made from it again.
# A record that stands for several (a tombstone) has first_seq < seq.
SCHEMA = """
CREATE TABLE IF NOT EXISTS chains (
    device_id TEXT PRIMARY KEY,
    head_seq INTEGER NOT NULL,
    head_hash BLOB NOT NULL,
    received_utc_ns INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS records (
    device_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    kind TEXT NOT NULL,
    envelope BLOB NOT NULL,
    received_utc_ns INTEGER NOT NULL,
    ledger_position INTEGER NOT NULL,
    PRIMARY KEY (device_id, seq)
);
CREATE INDEX IF NOT EXISTS records_by_kind ON records (kind, received_utc_ns);
CREATE TABLE IF NOT EXISTS forks (
    device_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    envelope BLOB NOT NULL,
    received_utc_ns INTEGER NOT NULL,
    ledger_position INTEGER NOT NULL,
    PRIMARY KEY (device_id, seq, hash)
);
CREATE TABLE IF NOT EXISTS windows (
    device_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    bundle_digest TEXT NOT NULL,
    start_utc_ns INTEGER NOT NULL,
    end_utc_ns INTEGER NOT NULL,
    received_utc_ns INTEGER NOT NULL,
    outcomes TEXT NOT NULL,
    latency BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS windows_by_time ON windows (received_utc_ns);
CREATE TABLE IF NOT EXISTS traffic (
    device_id TEXT NOT NULL,
    purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (device_id, purpose)
);
CREATE TABLE IF NOT EXISTS answers (
    device_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    round INTEGER NOT NULL,
    accepted INTEGER NOT NULL,
    reason_code TEXT NOT NULL,
    policy_rule TEXT NOT NULL,
    received_utc_ns INTEGER NOT NULL,
    PRIMARY KEY (device_id, seq)
);
"""
