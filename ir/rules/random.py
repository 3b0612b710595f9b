"""Random values and decoded text or pictures: nothing about them can be compared, so all stays."""

from __future__ import annotations

from .base import Site, rule

RANDOM = (
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Bernoulli", "Multinomial"),
)


@rule(*RANDOM, family="random", exactness="pinned")
def random(site: Site) -> None:
    """The values that are drawn depend on how many are drawn."""
    site.pin_all("random: fewer values would be other values")
