"""What is measured on the device: operational windows at once, counts about the data only in slow, large windows."""
