"""Generated message modules, version 1. Do not edit: see protos/README.md."""
