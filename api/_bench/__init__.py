"""Benchmarks of the kernels: the cases, their rivals and floors, and the runner behind `kernel-distill bench`."""
