"""CUDA C++ implementations, compiled by NVRTC through CuPy on first use."""
