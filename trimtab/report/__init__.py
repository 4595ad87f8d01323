"""Report: the page of a run. It reads what the run left, and never runs a model."""

from trimtab.report.page import write
from trimtab.report.read import Report, parse, read

__all__ = ["Report", "parse", "read", "write"]
