"""`python -m kernel_distill`."""

from .cli import main

main()
