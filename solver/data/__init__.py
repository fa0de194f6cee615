"""Data sets from names, files and folders, as raw arrays with checksums."""

from .base import Data
from .load import load_data

__all__ = ["Data", "load_data"]
