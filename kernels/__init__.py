"""The room of hand-written kernels, installed as `minicnn.kernels`; it holds none yet."""
