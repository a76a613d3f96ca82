"""Federated rounds: whom to ask, what to promise, how to check and combine what comes back, and when to do it again."""
