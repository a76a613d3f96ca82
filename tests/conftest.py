"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

import holdfast  # noqa: F401  # before any test imports onnxruntime: from here on that tells nobody (decision 0013)

settings.register_profile("holdfast", deadline=None)  # nothing asserts a wall-clock time: the cores are shared
settings.load_profile("holdfast")
