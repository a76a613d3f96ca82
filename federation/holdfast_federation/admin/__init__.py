"""The operator: a JSON API on a unix socket that only its owner can open, and the client of the command line."""
