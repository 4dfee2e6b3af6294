"""Reads the small XML documents of the service, on expat itself.

Why not ElementTree: it takes longer to load than a part takes to send, and it accepts a document type declaration,
which no reply of the service has and every attack by entities needs. Here one is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.parsers import expat


class Element:
    """A name without its namespace, the text before the first child, and the children."""

    __slots__ = ("children", "name", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.children: list[Element] = []

    def all(self, name: str) -> Iterator[Element]:
        """The children of that name."""
        return (child for child in self.children if child.name == name)

    def value(self, name: str) -> str | None:
        """The text of the first child of that name, blanks included; None where there is none, or it is empty."""
        child = next(self.all(name), None)
        return None if child is None else child.text or None


class _Refused(Exception):
    pass


def parse(body: bytes) -> Element | None:
    """The root of a document; None where the body is no XML, or declares a document type."""
    if not body.lstrip().startswith(b"<"):
        return None
    open_elements = [Element("")]

    def on_start(name: str, _attributes: dict[str, str]) -> None:
        element = Element(name.rpartition(" ")[2].rpartition(":")[2])
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def on_end(_name: str) -> None:
        open_elements.pop()

    def on_text(text: str) -> None:
        if not open_elements[-1].children:
            open_elements[-1].text += text

    def on_doctype(*_: object) -> None:
        raise _Refused

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = on_start
    parser.EndElementHandler = on_end
    parser.CharacterDataHandler = on_text
    parser.StartDoctypeDeclHandler = on_doctype
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, _Refused):
        return None
    return open_elements[0].children[0]
