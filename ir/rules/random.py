"""Random values and decoded text or pictures: nothing about them can be compared, so all stays."""

from __future__ import annotations

from ..graphs import RANDOM
from .base import Site, rule


@rule(*sorted(RANDOM), family="random", exactness="pinned")
def random(site: Site) -> None:
    """The values that are drawn depend on how many are drawn."""
    site.pin_all("random: fewer values would be other values")
