"""The path that README once showed; the module is minicnn.backends.ops_cuda."""

from .backends.ops_cuda import Operations

__all__ = ["Operations"]
