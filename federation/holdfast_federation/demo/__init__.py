"""The demonstration: two hospitals, four devices, real keys, real rounds, and a bill at the end."""
