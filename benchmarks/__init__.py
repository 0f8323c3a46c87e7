"""Measurements of minicnn beside frameworks and beside the machine's limits."""
