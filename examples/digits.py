"""Handwritten digits and a small CNN: `trimtab fit examples/digits.py --max-drop 0.02 --hours 0.02`.

The task comes with trimtab, as `trimtab fit digits` too; see trimtab/examples/digits.py for how it is written.
"""

from trimtab.examples.digits import task

__all__ = ["task"]
