"""Arrays in, arrays out: the numerical operations that everything else is built on.

This layer knows torch and NumPy; it knows no labels, data sets or files.
"""

from .gram import gram_add_, mirror_upper_
from .random import normal, random_bits, uniform

__all__ = ["gram_add_", "mirror_upper_", "normal", "random_bits", "uniform"]
