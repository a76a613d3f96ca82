"""Other servers of the same models, for the table beside ours: each a program of its own that says where it listens."""
