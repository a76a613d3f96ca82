"""Models on the device: may it be activated, fetched in pieces, kept in slots that survive power loss, swapped in."""
