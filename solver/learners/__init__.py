"""Learners of distilled sets, one method a file, and what they share: rows, batches, steps of an optimiser."""
