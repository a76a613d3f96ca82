"""Signed records in: verify, bound, check the chain, store, acknowledge; and the merged view of the fleet."""
