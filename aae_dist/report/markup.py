"""HTML that cannot be broken by what stands in it: text is escaped unless it is markup already."""

import re
from html import escape


class Html(str):
    """Text that is markup: `tag` puts it in as it is."""

    __slots__ = ()


VOID = ("img", "meta", "wbr")
"""Elements that have no content and no closing tag."""


def tag(name: str, /, *children: str, **attributes: object) -> Html:
    """Return an element.

    Args:
        name: of the element.
        children: text, which is escaped, or `Html`, which is not.
        attributes: escaped; `class_` is class, `data_value` data-value; None leaves one out, True
            gives one without a value.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Return the children one after another, as `tag` puts them in."""
    return Html("".join(c if isinstance(c, Html) else escape(c) for c in children))


def breakable(text: str) -> Html:
    """Return text that may go on in a new line after each dot and slash, as in dotted keys."""
    parts = re.split(r"(?<=[./])", text)
    return Html(tag("wbr").join(escape(part) for part in parts))


def _attribute(key: str, value: object) -> str:
    if value is None:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
