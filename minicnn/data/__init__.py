"""Digits from anywhere: files, a download, or drawn by the package."""

from .load import load_data

__all__ = ["load_data"]
