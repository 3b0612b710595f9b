"""Operators on strings and encoded pictures: they come before any weight."""

from __future__ import annotations

from .base import Site, rule


@rule("ImageDecoder", "StringNormalizer", "StringSplit", family="text", exactness="pinned")
def decode(site: Site) -> None:
    """The number of results depends on the data."""
    site.pin_all("decoded from text or bytes")


@rule("TfIdfVectorizer", family="text")
def count_terms(site: Site) -> None:
    """Rows are counted by themselves; the columns are the vocabulary."""
    x, y = site.x, site.y
    for operand in (x, y):
        site.pin(operand.axis(-1), "terms are counted along this axis")
    if x.rank > 1:
        site.link(x.axis(0), y.axis(0))
