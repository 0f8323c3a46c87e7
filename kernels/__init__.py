"""The hand-written kernels: one source file an operation, installed as `minicnn.kernels`."""
