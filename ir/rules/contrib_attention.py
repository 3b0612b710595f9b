"""The attention operators of ONNX Runtime (see `heads` for how operands are spelled)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import Operand, Site, rule
from .heads import LOOKED_UP, SOFTMAX, Letters, keep_scale, left_of
from .quantization import MICROSOFT

if TYPE_CHECKING:
    from ..restated import Restated

_TURNED = "a rotation inside the attention takes fixed head sizes"
_BUFFER = "bookkeeping of a buffer of keys and values"
_CAUSAL = "the order of the queries matters to a causal attention"
_NORMALISED = "queries and keys are normalised over the dimensions of a head"
_COLUMNS = "weights with a zero point for every column"
_STAY = {"l": SOFTMAX, "t": SOFTMAX, "p": SOFTMAX}


def _place_mask(letters: Letters, mask: Operand | None) -> None:
    """A length for every sample, or a mask [batch, keys] or [batch, queries, keys]; other forms
    concern the batch as a whole."""
    if mask is None:
        return
    if mask.rank == 1:
        letters.place(mask, "b" if mask.shape[0] == letters.sizes["b"] else ".")
    else:
        letters.place(mask, {2: "b .", 3: "b s ."}.get(mask.rank, ". . . ."))
    if mask.rank == 4 or (mask.rank == 1 and mask.shape[0] != letters.sizes["b"]):
        letters.site.pin(letters.hub("b"), "a mask whose form depends on the size of the batch")


# -- one weight for queries, keys and values ------------------------------------------------------


def _hidden_sizes(given: tuple[int, ...] | None, columns: int) -> tuple[int, ...]:
    return given or (columns // 3,) * 3


def _restate_packed(node: Restated) -> None:
    given, heads = node.integers("qkv_hidden_sizes"), node.integer("num_heads", 1)
    sizes = _hidden_sizes(given, node.old_size(1, 1))
    parts = np.split(node.keep(1, 1), np.cumsum(sizes)[:2])
    left = [int(part.sum()) for part in parts]
    count, size = left_of(parts[0], heads)
    node.set_int("num_heads", count)
    if given or left[0] != left[2]:
        node.set_ints("qkv_hidden_sizes", left)
    keep_scale(node, sizes[0] // heads, size, zero_is_default=True)


@rule("Attention", "QAttention", domain=MICROSOFT, family="attention", restate=_restate_packed)
def packed_attention(site: Site) -> None:
    """Self-attention on x W + b, where the columns of W are those of queries, keys and values."""
    x, w, bias = site.x, site.inputs[1], site.input(2)
    assert w is not None
    quantised = site.node.op_type == "QAttention"
    mask, past = (5, 8) if quantised else (3, 4)
    heads = site.integer("num_heads", 1)
    columns = _hidden_sizes(site.integers("qkv_hidden_sizes"), w.shape[1])
    stay = _STAY | {"s": SOFTMAX}
    if site.integer("do_rotary", 0):
        stay["d"] = _TURNED
    # One cache holds keys and values: their dimensions are alike then.
    cached = site.input(past) is not None or site.output(1) is not None
    e = "d" if quantised or cached else "e"
    run = f"hd+hd+h{e}"
    letters = Letters(site, {"h": heads, "d": columns[0] // heads, "e": columns[2] // heads}, stay)
    letters.place(x, "b s c")
    letters.place(w, f"c {run}")
    letters.place(bias, run)
    _place_mask(letters, site.input(mask))
    letters.place(site.input(past), ". b h p d")
    if quantised:
        for number in (4, 7):
            given = site.input(number)
            if given is not None and given.shape == (sum(columns),):
                letters.place(given, run)
                if number == 7:
                    site.pin(letters.hub("d"), _COLUMNS)
    else:
        letters.place(site.input(5), "b h s t")
        site.pin_all(_BUFFER, site.inputs[6:])
    letters.place(site.y, f"b s h{e}")
    letters.place(site.output(1), ". b h t d")
    letters.couple(sinks=[(1, 1), *([(2, 0)] if bias is not None else [])])
    site.contract((0, 2), (1, 0))
    site.role("producer", w.axis(1))
    site.macs(*x.axes, w.axis(1))
    letters.macs("bsshd")
    letters.macs(f"bssh{e}")


# -- separate queries, keys and values ------------------------------------------------------------

_PLACES = {
    "MultiHeadAttention": (3, 4, 5, 6, 7),
    "DecoderMaskedMultiHeadAttention": (10, 3, 4, 5, 6),
}
"""Where they have the bias, the mask, what is added to the scores, past keys and past values."""


def _restate_separate(node: Restated) -> None:
    heads, rank, width = node.integer("num_heads", 1), node.input_rank(0), node.old_size(0, 2)
    if rank == 5:
        left, old, size = node.new_size(0, 2), node.old_size(0, 4), node.new_size(0, 4)
    else:
        width = width if node.has_input(1) else width // 3
        left, size = left_of(node.keep(0, 2)[:width], heads)
        old = width // heads
    node.set_int("num_heads", left)
    keep_scale(node, old, size, zero_is_default=True)


@rule(*_PLACES, domain=MICROSOFT, family="attention", restate=_restate_separate)
def multi_head_attention(site: Site) -> None:
    """Queries, keys and values apart, or packed with an axis of 3 or 2; keys and values may come
    with their heads apart, as a cache has them."""
    q, k, v = site.x, site.input(1), site.input(2)
    places = _PLACES[site.node.op_type]
    bias, mask, added, past_keys, past = map(site.input, places)
    heads = site.integer("num_heads", 1)
    apart = v is not None and v.rank == 3
    width = q.shape[2] if k is not None else q.shape[2] // 3
    size = q.shape[4] if q.rank == 5 else width // heads
    sizes = {"h": heads, "d": size, "e": v.shape[2] // heads if v is not None and apart else size}
    tied = not apart or past is not None or site.node.op_type != "MultiHeadAttention"
    e = "d" if tied else "e"
    stay = dict(_STAY)
    if site.integer("unidirectional", 0) or past is not None:
        stay["s"] = _CAUSAL
    if k is None:
        stay["s"] = SOFTMAX
    letters = Letters(site, sizes, stay)
    run = f"hd+hd+h{e}"
    letters.place(q, "b s h . d" if q.rank == 5 else f"b s {run}" if k is None else "b s hd")
    letters.place(k, {3: "b l hd", 4: "b h l d", 5: "b l h . d"}[k.rank] if k is not None else "")
    letters.place(v, f"b l h{e}" if apart else f"b h l {e}")
    letters.place(bias, run)
    _place_mask(letters, mask)
    letters.place(added, "b h s t")
    letters.place(past_keys, "b h p d")
    letters.place(past, f"b h p {e}")
    site.pin_all(_BUFFER, [o for k, o in enumerate(site.inputs) if k > 2 and k not in places])
    letters.place(site.y, f"b s h{e}")
    letters.place(site.output(1), "b h t d")
    letters.place(site.output(2), f"b h t {e}")
    letters.place(site.output(3), "b h s t")
    letters.couple(sinks=[(0, q.rank - 1), *([(places[0], 0)] if bias is not None else [])])
    keys = "s" if k is None else "l"
    for length in (keys, "p") if past is not None else (keys,):
        letters.macs(f"bs{length}hd")
        letters.macs(f"bs{length}h{e}")


# -- heads in groups ------------------------------------------------------------------------------


def _restate_grouped(node: Restated) -> None:
    heads, kv_heads = node.integer("num_heads", 1), node.integer("kv_num_heads", 1)
    keep = node.keep(0, 2)
    if node.has_input(1):
        kept = node.keep(1, 2)
        size = keep.size // heads
    else:
        size = keep.size // (heads + 2 * kv_heads)
        keep, kept = keep[: heads * size], keep[heads * size : (heads + kv_heads) * size]
    left, new_size = left_of(keep, heads)
    node.set_int("num_heads", left)
    node.set_int("kv_num_heads", left_of(kept, kv_heads)[0])
    keep_scale(node, size, new_size, zero_is_default=True)


@rule("GroupQueryAttention", domain=MICROSOFT, family="attention", restate=_restate_grouped)
def group_query_attention(site: Site) -> None:
    """Causal attention with a cache, several query heads to one of keys and values, and perhaps a
    rotation of queries and keys. Head sizes are multiples of 8, or of 16 with a rotation."""
    q, k, cos = site.x, site.input(1), site.input(7)
    if any(site.string(f"{x}_quant_type", "NONE") != "NONE" for x in "kv"):
        site.pin_all("a quantised cache of keys and values")
        return
    heads, kv_heads = site.integer("num_heads", 1), site.integer("kv_num_heads", 1)
    rotary = site.integer("do_rotary", 0) != 0 and cos is not None
    parts = heads if k is not None else heads + 2 * kv_heads
    size = q.shape[2] // parts
    stay = _STAY | {"s": _CAUSAL, "m": LOOKED_UP}
    if site.input(14) is not None or site.input(15) is not None:
        stay["d"] = _NORMALISED
    letters = Letters(site, {"h": heads, "g": kv_heads, "d": size}, stay)
    letters.place(q, "b s hd" if k is not None else "b s hd+gd+gd")
    for operand in (k, site.input(2)):
        letters.place(operand, "b l gd")
    for number in (3, 4):
        letters.place(site.input(number), "b g p d")
    for number in (5, 16):
        lengths = site.input(number)
        letters.place(lengths, "b" if lengths is not None and lengths.rank == 1 else "b .")
    for operand in (cos, site.input(8)):
        letters.place(operand, "m c")
    letters.place(site.input(9), "b s")
    letters.place(site.input(10), "b h s t")
    letters.place(site.input(11), "h")
    site.pin_all(_BUFFER, [site.input(number) for number in (6, 12, 13)])
    for number in (14, 15):
        letters.place(site.input(number), "d")
    letters.place(site.y, "b s hd")
    for number in (1, 2):
        letters.place(site.output(number), "b g t d")
    letters.place(site.output(3), "b h s t")
    turned = 0
    if rotary:
        turned = 2 * letters.sizes["c"]
        letters.rotate(site.integer("rotary_interleaved", 0) != 0)
        _in_blocks(letters, "c", 0, 8)
    _in_blocks(letters, "d", turned, 16 if rotary else 8)
    letters.couple(sinks=[(0, 2)])
    for keys in ("s", "p") if k is None else ("l", "p"):
        if keys in letters.sizes:
            letters.macs(f"bs{keys}hd")
            letters.macs(f"bs{keys}hd")


def _in_blocks(letters: Letters, letter: str, start: int, block: int) -> None:
    """From ``start`` on, coordinates of a letter go in whole blocks."""
    own = np.arange(start, letters.sizes[letter], dtype=np.int64)
    blocks = (own - start) // block
    if own.size:
        hub = letters.site.hub(int(blocks[-1]) + 1)
        letters.site.link(letters.hub(letter), hub, own, blocks)
