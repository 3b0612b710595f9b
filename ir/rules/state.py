"""Operators of the standard that carry a state from token to token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Site, rule
from .heads import Letters, keep_scale, left_of

if TYPE_CHECKING:
    from ..restated import Restated

_TOKENS = "tokens follow one another"


@rule("CausalConvWithState", family="state")
def causal_conv_with_state(site: Site) -> None:
    """X [N, C, T], W [C, 1, k], B [C], states [N, C, k - 1]: every channel by itself."""
    x, w = site.x, site.inputs[1]
    assert w is not None
    site.produce(w.axis(0), x.axis(1))
    bias = site.input(2)
    if bias is not None:
        site.link(bias.axis(0), x.axis(1))
    for operand in (site.input(3), *site.outputs):
        if operand is not None:
            site.link_axes(x, operand, skip=[2])
            site.pin(operand.axis(2), _TOKENS)
    for axis in (x.axis(2), *w.axes[1:]):
        site.pin(axis, _TOKENS)
    site.macs(*x.axes, w.axis(2))


def _restate_heads(node: Restated) -> None:
    heads, kv_heads = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
    left, size = left_of(node.keep(0, 2), heads)
    node.set_int("q_num_heads", left)
    node.set_int("kv_num_heads", left_of(node.keep(1, 2), kv_heads)[0])
    keep_scale(node, node.old_size(0, 2) // heads, size, zero_is_default=True)


@rule("LinearAttention", family="state", restate=_restate_heads)
def linear_attention(site: Site) -> None:
    """State S [d, e] of a head, S = decay S + k (v - ...)', y = scale q' S: dimension d ends where
    queries and keys meet the state, so that both are zero there."""
    query, value, decay = site.x, site.inputs[2], site.input(4)
    assert value is not None
    heads, kv_heads = site.integer("q_num_heads", 0), site.integer("kv_num_heads", 0)
    sizes = {
        "h": heads,
        "g": kv_heads,
        "d": query.shape[2] // heads,
        "e": value.shape[2] // kv_heads,
    }
    letters = Letters(site, sizes, {"t": _TOKENS})
    letters.place(query, "b t hd")
    letters.place(site.inputs[1], "b t gd")
    letters.place(value, "b t ge")
    letters.place(site.input(3), "b g d e")
    whole = decay is not None and decay.shape[2] == kv_heads
    letters.place(decay, "b t g" if whole else "b t gd")
    letters.place(site.input(5), "b t g")
    letters.place(site.y, "b t he")
    letters.place(site.output(1), "b g d e")
    letters.couple(sinks=[(0, 2), (1, 2)])
    letters.macs("btgde")
    letters.macs("bthde")
