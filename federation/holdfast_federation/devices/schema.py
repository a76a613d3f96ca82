"""Tables of the devices."""

from __future__ import annotations

SCHEMA = """
CREATE TABLE IF NOT EXISTS devices (
    device_id TEXT PRIMARY KEY,
    site TEXT NOT NULL,
    name TEXT NOT NULL,
    report_key_spki BLOB NOT NULL UNIQUE,
    key_epoch INTEGER NOT NULL,
    flower_public_key TEXT NOT NULL,
    certificate_sha256 TEXT NOT NULL,
    enrolled_utc_ns INTEGER NOT NULL,
    revoked_utc_ns INTEGER,
    revoked_reason TEXT NOT NULL DEFAULT '',
    last_seen_utc_ns INTEGER,
    active TEXT NOT NULL DEFAULT '{}',
    policy_digest TEXT NOT NULL DEFAULT '',
    agent_version TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS devices_by_site ON devices (site, device_id);
"""
