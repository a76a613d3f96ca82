"""The append-only Merkle log of what was decided and received, its signed checkpoints and its proofs."""
