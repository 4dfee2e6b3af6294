"""Pages of keys: prefix, delimiter, marker and limit, the same for objects and uploads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from obs_engine.testing.replies import invalid_argument


@dataclass
class Page:
    """One page. `next_marker` is the last name on it, None where nothing follows."""

    keys: list[str] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next_marker: str | None = None


def page_of(keys: Iterable[str], prefix: str, delimiter: str, marker: str, limit: int) -> Page:
    """Folds ordered keys into one page of at most `limit` keys and common prefixes together."""
    page = Page()
    last = ""
    if limit == 0:
        return page
    for key in keys:
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        name = key if cut < 0 else key[: cut + len(delimiter)]
        if cut >= 0 and (name == last or (marker.startswith(name) and marker >= name)):
            continue
        if len(page.keys) + len(page.prefixes) == limit:
            page.next_marker = last
            return page
        (page.keys if cut < 0 else page.prefixes).append(name)
        last = name
    return page


def number_argument(call_argument: Callable[[str], str | None], name: str, default: int, low: int, high: int) -> int:
    """A number from the query, at most `high`: larger ones are cut down, as the service does.

    Raises:
        Refusal: 400 InvalidArgument where it is no number, or below `low`.
    """
    text = call_argument(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 12) or int(text) < low:
        raise invalid_argument(f"Argument {name} must be an integer of at least {low}.", name, text)
    return min(int(text), high)
