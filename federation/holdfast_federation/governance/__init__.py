"""Governance: what the recorded facts say about purpose, worth and duty."""
