"""How far a model's outputs have moved from the original's, in ONNX Runtime.

For a float output with original values a and new values b over all feeds the drift is
``|b - a| / |a|`` in Euclidean norms, for any other output the share of elements that differ; of
several outputs the largest counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as oir

from .elements import is_float
from .runnable import run_feeds, runnable
from .session import Feed


def drift(
    original: oir.Model, model: oir.Model, feeds: Sequence[Feed], *, threads: int = 0
) -> float:
    """The drift of ``model``. Raises CertificateError when a model does not run."""
    moved: dict[str, float] = {}
    scale: dict[str, float] = {}
    roots: set[str] = set()
    with runnable(original, model) as (first, second):
        runs = [run_feeds(proto, feeds, threads=threads) for proto in (first, second)]
        for old, new in zip(*runs, strict=True):
            for name, a in old.items():
                b = new.get(name)
                if b is None or b.shape != a.shape:  # as many boxes as are found, say
                    difference = size = 1.0
                elif is_float(a):
                    x, y = (v.astype(np.float64) for v in (a, b))
                    difference, size = float(np.square(y - x).sum()), float(np.square(x).sum())
                    roots.add(name)
                else:
                    difference, size = float((a != b).sum()), float(a.size)
                moved[name] = moved.get(name, 0.0) + difference
                scale[name] = scale.get(name, 0.0) + size
    found = [0.0]
    for name, difference in moved.items():
        ratio = difference / scale[name] if scale[name] else math.inf
        if difference:
            found.append(math.sqrt(ratio) if name in roots else ratio)
    return max(found)
