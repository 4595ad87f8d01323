"""Swap: a part of a network replaced by a cheaper kind that is trained to give what the part gave."""
