"""Quantisation: which tensors, which ranges, fake-quantised to train and in integers to run."""
