"""Closed forms, feature maps, statistics, distilled sets and their file."""
