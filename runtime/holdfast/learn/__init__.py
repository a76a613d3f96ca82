"""Learning where the data is: local samples, the trainer on the stock runtime, and the federated worker."""
