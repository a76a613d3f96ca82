"""The one channel to the coordinator: mutual TLS, a typed method per call, and a count of every byte that left."""
