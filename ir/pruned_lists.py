"""Sequences in a rewritten model: what they declare about their elements, and values in them."""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as oir

from .lists import evaluate_lists
from .shapes import Array

if TYPE_CHECKING:
    from .rewrite import _Rewriter


def restate_lists(rewriter: _Rewriter) -> None:
    """Declared shapes of all sequences of which an element is touched."""
    for name, listed in rewriter.analysis.lists.items():
        value = rewriter.values.get(name)
        cut = any(map(rewriter.touched, listed.operands))
        if not cut or value is None or value.shape is None:
            continue
        sizes = np.stack([rewriter.new_shape(operand)[0] for operand in listed.operands])
        dims: list[int | oir.SymbolicDim] = []
        for dim, found in zip(value.shape, sizes.T, strict=True):
            if isinstance(dim, int):
                same = bool((found == found[0]).all())
                dims.append(int(found[0]) if same else oir.SymbolicDim(None))
            else:
                dims.append(dim)
        value.shape = oir.Shape(dims)


def follow_list(
    rewriter: _Rewriter, proto: onnx.NodeProto, patched: dict[int, list[Array]]
) -> None:
    """Hands values that have changed on into sequences and out of them. Sizes never have: they are
    put right where they enter one."""
    changed = ChainMap({proto.input[i]: need for i, need in patched.items()}, rewriter.changed)
    results = []
    for k, fact in enumerate(rewriter.analysis.facts):
        read = [*proto.input]
        for name in proto.input:
            read += fact.lists[name].names if name in fact.lists else ()
        after = {name: changed[name][k] for name in read if name in changed}
        results.append(evaluate_lists(proto, fact.lists, ChainMap(after, fact.values)))
    for name in results[0]:
        old, new = rewriter.before(name), [found[name] for found in results if name in found]
        whole = old is not None and len(new) == len(old)
        if whole and not all(map(np.array_equal, old or (), new)):
            rewriter.changed[name] = new
