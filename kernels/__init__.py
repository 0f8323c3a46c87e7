"""The hand-written kernels, installed as `minicnn.kernels`: sources in CUDA and C, no Python."""
