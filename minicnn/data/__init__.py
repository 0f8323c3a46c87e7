"""Data sets of digits: read from files, downloaded or drawn. Read load.py first."""

from .load import load_data

__all__ = ["load_data"]
