"""Small models whose units, and what these own, are written out by hand, for tests of criteria."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

import secateur
from secateur.ir.analysis import Analysis

from .pass_runs import build, normal

Array = npt.NDArray[Any]

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "residual": {"w0": (6, 3, 3, 3), "b0": (6,), "w1": (8, 6, 3, 3), "w2": (6, 8, 1, 1),
                 "w3": (4, 6, 1, 1)},
    "concat": {"wa": (5, 3, 1, 1), "wb": (4, 3, 1, 1), "wc": (2, 9, 3, 3)},
    "depthwise": {"w0": (6, 3, 1, 1), "wd": (6, 1, 3, 3), "w1": (2, 6, 1, 1)},
    "grouped": {"w0": (8, 3, 1, 1), "wg": (12, 4, 3, 3), "w1": (2, 12, 1, 1)},
    "heads": {"wq": (8, 12), "wk": (8, 12), "wv": (8, 12), "wo": (12, 8)},
    "shared": {"u": (3, 6), "w": (6, 6), "v": (6, 2)},
    "norms": {"w0": (6, 3, 1, 1), "w1": (5, 6, 1, 1), "w2": (2, 5, 1, 1),
              **{f"{n}{k}": (c,) for n, c in (("p", 6), ("q", 6)) for k in "sbmv"}},
}  # fmt: skip

_IMAGE = "(float[N,3,5,5] x) => (float[N,{0},5,5] y)"
TEXTS = {
    "residual": _IMAGE.format(4)
    + """{
        a = Conv<pads=[1,1,1,1]>(x, w0, b0)
        b = Relu(a)
        c = Conv<pads=[1,1,1,1]>(b, w1)
        d = Relu(c)
        e = Conv(d, w2)
        f = Add(b, e)
        y = Conv(f, w3)
    }""",
    "concat": _IMAGE.format(2)
    + """{
        a = Conv(x, wa)
        b = Conv(x, wb)
        c = Concat<axis=1>(a, b)
        y = Conv<pads=[1,1,1,1]>(c, wc)
    }""",
    "depthwise": _IMAGE.format(2)
    + """{
        a = Conv(x, w0)
        b = Conv<group=6, pads=[1,1,1,1]>(a, wd)
        c = Relu(b)
        y = Conv(c, w1)
    }""",
    "grouped": _IMAGE.format(2)
    + """{
        a = Conv(x, w0)
        b = Conv<group=2, pads=[1,1,1,1]>(a, wg)
        c = Relu(b)
        y = Conv(c, w1)
    }""",
    "heads": """(float[N,7,8] x) => (float[N,7,8] y) {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        split = Constant<value_ints=[0,7,3,4]>()
        q4 = Reshape(q, split)
        k4 = Reshape(k, split)
        v4 = Reshape(v, split)
        qt = Transpose<perm=[0,2,1,3]>(q4)
        kt = Transpose<perm=[0,2,3,1]>(k4)
        vt = Transpose<perm=[0,2,1,3]>(v4)
        s = MatMul(qt, kt)
        p = Softmax(s)
        o = MatMul(p, vt)
        ot = Transpose<perm=[0,2,1,3]>(o)
        join = Constant<value_ints=[0,7,12]>()
        r = Reshape(ot, join)
        y = MatMul(r, wo)
    }""",
    "shared": """(float[N,3] x) => (float[N,2] y) {
        a = MatMul(x, u)
        b = MatMul(a, w)
        c = Relu(b)
        d = MatMul(c, w)
        e = Add(a, d)
        y = MatMul(e, v)
    }""",
    "norms": _IMAGE.format(2)
    + """{
        a = Conv(x, w0)
        b = BatchNormalization(a, ps, pb, pm, pv)
        c = Relu(b)
        d = BatchNormalization(c, qs, qb, qm, qv)
        e = Conv(d, w1)
        f = Relu(e)
        y = Conv(f, w2)
    }""",
}


def weights(name: str, seed: int = 0) -> dict[str, Array]:
    """Random weights; scales (s) of both signs, variances (v) positive."""
    made = {k: normal(*shape, seed=seed + i) for i, (k, shape) in enumerate(SHAPES[name].items())}
    return {k: np.abs(w) + 0.5 if k[-1] == "v" and w.ndim == 1 else w for k, w in made.items()}


def model(name: str, arrays: dict[str, Array] | None = None) -> onnx.ModelProto:
    options: dict[str, Any] = {**(arrays or weights(name))}
    return build(f"g {TEXTS[name]}", **options)


def analysis(name: str, arrays: dict[str, Array] | None = None) -> Analysis:
    return _analysis(name) if arrays is None else secateur.analyze(model(name, arrays))


@cache
def _analysis(name: str) -> Analysis:
    return secateur.analyze(model(name))


def samples(name: str, count: int = 6) -> dict[str, Array]:
    shape = {"heads": (7, 8), "shared": (3,)}.get(name, (3, 5, 5))
    return {"x": normal(count, *shape, seed=99) + np.float32(0.3)}


def units(found: Analysis, weight: str, index: int) -> npt.NDArray[np.int64]:
    """The unit of every coordinate of a weight axis; all of them can go."""
    own = found.units_of(found.operands[weight].axis(index))
    assert own is not None and (own >= 0).all()
    return own


def rows(array: Array, axis: int, groups: int = 1) -> Array:
    """What each channel of an axis holds, one row each; with ``groups`` the channels at the same
    place of every group make one row."""
    flat = np.moveaxis(array.astype(np.float64), axis, 0).reshape(array.shape[axis], -1)
    return np.concatenate(np.split(flat, groups), axis=1)


def owned(name: str, w: dict[str, Array]) -> dict[tuple[str, int], list[tuple[str, Array]]]:
    """By the weight axis that makes a group: role and rows of every weight axis of its units."""
    p, c = "producer", "consumer"
    match name:
        case "residual":
            stem = [(p, rows(w["w0"], 0)), (c, rows(w["w1"], 1)), (p, rows(w["w2"], 0))]
            inner = [(p, rows(w["w1"], 0)), (c, rows(w["w2"], 1))]
            return {("w0", 0): [*stem, (c, rows(w["w3"], 1))], ("w1", 0): inner}
        case "concat":
            read = rows(w["wc"], 1)
            return {
                ("wa", 0): [(p, rows(w["wa"], 0)), (c, read[:5])],
                ("wb", 0): [(p, rows(w["wb"], 0)), (c, read[5:])],
            }
        case "depthwise":
            return {
                ("w0", 0): [(p, rows(w["w0"], 0)), (p, rows(w["wd"], 0)), (c, rows(w["w1"], 1))]
            }
        case "grouped":
            return {
                ("w0", 0): [(p, rows(w["w0"], 0, 2)), (c, rows(w["wg"], 1))],
                ("wg", 0): [(p, rows(w["wg"], 0, 2)), (c, rows(w["w1"], 1, 2))],
            }
        case "heads":
            made = [(p, w[k].T.astype(np.float64).reshape(3, -1)) for k in ("wq", "wk", "wv")]
            return {("wq", 1): [*made, (c, w["wo"].astype(np.float64).reshape(3, -1))]}
        case "shared":
            both = [(c, rows(w["w"], 0)), (p, rows(w["w"], 1))]
            return {("u", 1): [(p, rows(w["u"], 1)), *both, (c, rows(w["v"], 0))]}
        case "norms":
            return {
                ("w0", 0): [(p, rows(w["w0"], 0)), (c, rows(w["w1"], 1))],
                ("w1", 0): [(p, rows(w["w1"], 0)), (c, rows(w["w2"], 1))],
            }
    raise ValueError(name)
