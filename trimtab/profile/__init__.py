"""Profile: what this machine reaches, and where a network's time, multiply-adds and bytes go on it."""

from trimtab.profile.probe import probe
from trimtab.profile.profile import Profile, profile
from trimtab.profile.row import Row

__all__ = ["Profile", "Row", "probe", "profile"]
