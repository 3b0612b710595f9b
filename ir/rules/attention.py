"""Attention and RotaryEmbedding, of the standard and of ONNX Runtime where they are alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Site, rule
from .heads import LOOKED_UP, SOFTMAX, Letters, keep_scale, left_of

if TYPE_CHECKING:
    from ..restated import Restated

_ORDERED = "the order of the queries matters to an attention with a window"
_COUNTED = "the position of a token is its index"


def _restate_attention(node: Restated) -> None:
    heads, kv_heads = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
    if node.input_rank(0) == 4:
        heads, kv_heads = node.old_size(0, 1), node.old_size(1, 1)
        left, size = node.new_size(0, 1), node.new_size(0, 3)
        kv_left, old = node.new_size(1, 1), node.old_size(0, 3)
    else:
        left, size = left_of(node.keep(0, 2), heads)
        kv_left, old = left_of(node.keep(1, 2), kv_heads)[0], node.old_size(0, 2) // heads
    for name, count in (("q_num_heads", left), ("kv_num_heads", kv_left)):
        if node.integer(name, count) != count:
            node.set_int(name, count)
    keep_scale(node, old, size)


@rule("Attention", family="attention", restate=_restate_attention)
def attention(site: Site) -> None:
    """Softmax(scale Q K' + mask) V, for every head; several heads of Q may share one of K and V."""
    q, k, v = site.x, site.inputs[1], site.inputs[2]
    assert k is not None and v is not None
    split = q.rank == 4
    heads = q.shape[1] if split else site.integer("q_num_heads", 0)
    kv_heads = k.shape[1] if split else site.integer("kv_num_heads", 0)
    sizes = {
        "h": heads,
        "g": kv_heads,
        "d": q.shape[-1] // (1 if split else heads),
        "e": v.shape[-1] // (1 if split else kv_heads),
    }
    stay = {"l": SOFTMAX, "t": SOFTMAX, "p": SOFTMAX}
    windows = ("left_window_size", "right_window_size")
    if site.integer("is_causal", 0) or any(site.integer(name, -1) >= 0 for name in windows):
        stay["s"] = _ORDERED
    letters = Letters(site, sizes, stay)
    letters.place(q, "b h s d" if split else "b s hd")
    letters.place(k, "b g l d" if split else "b l gd")
    letters.place(v, "b g l e" if split else "b l ge")
    letters.place(site.input(3), "b h s .")
    letters.place(site.input(4), "b g p d")
    letters.place(site.input(5), "b g p e")
    letters.place(site.input(6), "b")
    letters.place(site.y, "b h s e" if split else "b s he")
    letters.place(site.output(1), "b g t d")
    letters.place(site.output(2), "b g t e")
    letters.place(site.output(3), "b h s t")
    letters.couple(sinks=[(0, q.rank - 1)])
    for keys in "lp" if site.input(4) is not None else "l":
        letters.macs(f"bs{keys}hd")
        letters.macs(f"bs{keys}he")


def _restate_rotary(node: Restated) -> None:
    caches = 1 if node.domain == "" else 2
    heads = node.integer("num_heads", 0)
    if heads:
        split = node.input_rank(0) == 4
        node.set_int(
            "num_heads", node.new_size(0, 1) if split else left_of(node.keep(0, 2), heads)[0]
        )
    if node.integer("rotary_embedding_dim", 0):
        node.set_int("rotary_embedding_dim", 2 * node.new_size(caches, -1))


@rule("RotaryEmbedding", family="attention", restate=_restate_rotary)
def rotary_embedding(site: Site) -> None:
    """Pairs of dimensions turn by the angles of their position: half with half, or neighbours."""
    _rotary(site, cos=1, sin=2, positions=3)


@rule("RotaryEmbedding", domain="com.microsoft", family="attention", restate=_restate_rotary)
def rotary_embedding_of_runtime(site: Site) -> None:
    """As the standard's, with another order of inputs; a single position is that of the first
    token. Without ``num_heads``, the caches tell the size of a head."""
    _rotary(site, cos=2, sin=3, positions=1)


def _rotary(site: Site, cos: int, sin: int, positions: int) -> None:
    x, cache, at = site.x, site.inputs[cos], site.input(positions)
    assert cache is not None
    split, columns = x.rank == 4, cache.shape[-1]
    apart = site.integer("num_heads", 0) or x.shape[2] // (2 * columns)
    heads = x.shape[1] if split else apart
    stay = {"m": LOOKED_UP}
    if at is not None and at.rank < 2:
        stay["s"] = _COUNTED
    sizes = {"h": heads, "d": x.shape[-1] // (1 if split else heads), "c": columns}
    letters = Letters(site, sizes, stay)
    for turned in (x, site.y):
        letters.place(turned, "b h s d" if split else "b s hd")
    for number in (cos, sin):
        letters.place(site.input(number), "b s c" if cache.rank == 3 else "m c")
    letters.place(at, "b s" if at is not None and at.rank == 2 else ".")
    letters.rotate(site.integer("interleaved", 0) != 0)
    letters.couple()
