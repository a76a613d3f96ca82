"""Who said what, and was anything changed: keys, envelopes, Merkle proofs, checkpoints, certificates."""
