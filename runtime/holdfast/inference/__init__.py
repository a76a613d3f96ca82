"""Sessions, the trial of a new model in a disposable child process, and the pool that swaps without a gap."""
