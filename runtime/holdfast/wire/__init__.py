"""What travels and how it is written: messages, their bytes, and their bounds."""
