"""What the device has said and nobody has acknowledged yet: a durable, hash-chained journal and its sender."""
