"""Techniques: what makes a network smaller or faster. Everything public here is one."""

from trimtab.compress.exits.experts import Experts
from trimtab.compress.exits.gate import Gates
from trimtab.compress.exits.technique import Exits
from trimtab.compress.factorise.technique import Factorise
from trimtab.compress.prune.blocks import RemoveBlocks
from trimtab.compress.prune.channels import Prune
from trimtab.compress.quantise.equalise import Equalise
from trimtab.compress.quantise.smooth import Smooth
from trimtab.compress.quantise.technique import Quantise
from trimtab.compress.recover import Distil, Recalibrate
from trimtab.compress.share.technique import Share
from trimtab.compress.share.tie import Tie
from trimtab.compress.sparsify.technique import Sparsify
from trimtab.compress.swap.technique import Swap

__all__ = [
    "Distil",
    "Equalise",
    "Exits",
    "Experts",
    "Factorise",
    "Gates",
    "Prune",
    "Quantise",
    "Recalibrate",
    "RemoveBlocks",
    "Share",
    "Smooth",
    "Sparsify",
    "Swap",
    "Tie",
]
