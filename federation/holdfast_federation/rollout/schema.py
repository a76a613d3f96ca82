"""Tables of the rollout. An assignment is never changed; a newer number takes its place."""

from __future__ import annotations

SCHEMA = """
CREATE TABLE IF NOT EXISTS assignments (
    device_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    model TEXT NOT NULL,
    digest TEXT NOT NULL,
    envelope BLOB NOT NULL,
    issued_utc_ns INTEGER NOT NULL,
    PRIMARY KEY (device_id, number)
);
CREATE INDEX IF NOT EXISTS assignments_by_model ON assignments (model, device_id, number);
"""
