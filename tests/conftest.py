"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("holdfast", deadline=None)  # nothing asserts a wall-clock time: the cores are shared
settings.load_profile("holdfast")
