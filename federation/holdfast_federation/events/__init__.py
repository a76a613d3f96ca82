"""What happened, in order, written in the same transaction as its cause; others read from where they stopped."""
