"""Holdfast: an edge and federated inference runtime (the device side and the shared ground)."""

__version__ = "0.1.0"
