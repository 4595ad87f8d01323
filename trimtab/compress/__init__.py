"""Techniques: what makes a network smaller or faster. Everything public here is one."""

from trimtab.compress.factorise.technique import Factorise
from trimtab.compress.prune.blocks import RemoveBlocks
from trimtab.compress.prune.channels import Prune
from trimtab.compress.quantise.equalise import Equalise
from trimtab.compress.quantise.smooth import Smooth
from trimtab.compress.quantise.technique import Quantise
from trimtab.compress.recover import Distil, Recalibrate
from trimtab.compress.sparsify.technique import Sparsify

__all__ = ["Distil", "Equalise", "Factorise", "Prune", "Quantise", "Recalibrate", "RemoveBlocks", "Smooth", "Sparsify"]
