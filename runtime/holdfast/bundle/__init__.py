"""The model bundle: manifest, container, signatures, approvals. Bytes in, verified values out; no IO."""
