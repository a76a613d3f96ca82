"""The command line of the device side and the author: parse, call, print."""
