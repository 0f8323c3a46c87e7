"""What a network is: its layers, shapes, arrays and optimizer. No numbers are held here."""
