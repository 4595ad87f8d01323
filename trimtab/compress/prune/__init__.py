"""Pruning: which channels and blocks matter least, and cutting them out."""
