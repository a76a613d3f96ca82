"""How a device becomes known: the certificate authority, join tokens, proofs of possession, renewal."""
