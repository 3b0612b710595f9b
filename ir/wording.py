"""Words of messages that depend on numbers."""

from __future__ import annotations


def counted(number: float, noun: str, plural: str = "", *, shown: str = "") -> str:
    """``1 unit``, ``2 units``; ``plural`` where it is not the noun with an s, ``shown`` where the
    number is written in another form."""
    word = noun if number == 1 else plural or f"{noun}s"
    return f"{shown or number} {word}"
