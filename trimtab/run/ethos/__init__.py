"""Ethos: Arm's Ethos-U neural processors, modelled by the vendor's own compiler."""
