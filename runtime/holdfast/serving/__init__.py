"""The data plane: fronts, the Open Inference Protocol, and what others may listen to."""
