"""The data plane: gRPC and HTTP on one port, one thread and one loop, over the sans-IO machines beside it."""
