"""The arithmetic of a network, once for each kind of device, and what compiles and runs it."""
