"""Sparsity: which single weights, groups or blocks of weights are zero."""
