"""Html: elements whose text is escaped unless it was made here, so that no text of a report can become markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Safe(str):
    """Markup that `element` or `raw` made; everything else is text, and is escaped."""

    __slots__ = ()


def raw(markup: str) -> Safe:
    """Markup of our own, written out in the source."""
    return Safe(markup)


def element(name: str, *children: object, **attributes: object) -> Safe:
    """An element; attributes that are None are left out, and `class_`, `text_anchor` become `class`, `text-anchor`."""
    listed = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Safe(f"<{name}{listed}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Safe:
    """Elements and texts one after another; texts are escaped."""
    return Safe("".join(c if isinstance(c, Safe) else escape(str(c)) for c in children))


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
