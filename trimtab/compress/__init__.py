"""Techniques: what makes a network smaller or faster. Everything public here is one."""

from trimtab.compress.quantise.technique import Quantise

__all__ = ["Quantise"]
