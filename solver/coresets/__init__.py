"""Rows that stand for all: where learned points start, and what they are compared with.

Coresets here are real rows with weights, chosen at random (all alike, or by what a row means to the set) or one after
another. `CORESETS` has them by name.
"""

from .coreset import Coreset
from .rows import coreset_rows
from .select import CORESETS, select

__all__ = ["CORESETS", "Coreset", "coreset_rows", "select"]
