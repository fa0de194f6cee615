"""Triton implementations, one file an operation. Imported only when one is chosen."""
