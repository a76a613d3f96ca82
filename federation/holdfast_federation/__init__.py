"""The coordinator side of Holdfast: enrols devices, verifies their reports, runs rounds, publishes models."""
