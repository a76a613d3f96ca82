"""The command line of the coordinator: parse, call, print."""
