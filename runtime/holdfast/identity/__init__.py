"""Who this device is: its state folder, its keys and pins, how it enrols and stays certified."""
