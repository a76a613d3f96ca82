"""The coordinator as one process: what it is built of, its listeners, and who may call what."""
