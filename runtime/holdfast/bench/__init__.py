"""The latency laboratory: what a model costs on this machine, and what a server adds."""
