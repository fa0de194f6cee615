"""What takes the place of other people's functions: the same signatures, in our words, on our kernels."""
