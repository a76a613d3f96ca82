"""Holdfast: an edge and federated inference runtime (the device side and the shared ground)."""

import os

__version__ = "0.1.0"

# ONNX Runtime from 1.32 on tells its maker over HTTPS about every process, model and error, from the moment its library
# is loaded; only the environment stops that. Here, because this runs before any module of ours (decision 0013).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
