"""Proof graphs: operators on quantised numbers (see `graph_builder` for the rules of counting)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from .graph_builder import Array, Net, Weight, graph, net


def int8(shape: Sequence[int], seed: int) -> Array:
    return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)


def bias(size: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(-3000, 3000, size).astype(np.int32)


def steps(*sizes: int, seed: int = 0) -> Array:
    """Scales, of one number if no size is given."""
    return np.random.default_rng(seed).uniform(0.004, 0.008, sizes).astype(np.float32)


ZERO = {"u0": np.array(0, np.uint8), "z0": np.array(0, np.int8)}


def _dynamic(op: str, x: str, w: str, y: str, scale: str) -> str:
    """y = x * w, with x quantised as it comes."""
    return f"""{x}q, {x}s, {x}z = DynamicQuantizeLinear({x}) {y}i = {op}({x}q, {w}, {x}z, z0)
        {y}f = Cast<to=1>({y}i) {y}s = Mul({x}s, {scale}) {y} = Mul({y}f, {y}s)\n"""


@graph(2, "w1 b1 w2 w3", dims="N T")
def integer_matmuls() -> Net:
    """MatMulInteger behind DynamicQuantizeLinear: both hidden layers are groups."""
    body = _dynamic("MatMulInteger", "x", "w1", "a", "c1") + "ab = Add(a, b1) h = Relu(ab)"
    body += _dynamic("MatMulInteger", "h", "w2", "b", "c2") + "k = Relu(b)"
    body += _dynamic("MatMulInteger", "k", "w3", "y", "c3")
    return net(
        "(float[N,T,10] x) => (float[N,T,6] y)", body,
        w1=int8((10, 24), 1), w2=int8((24, 17), 2), w3=int8((17, 6), 3), b1=24,
        c1=steps(24, seed=1), c2=steps(17, seed=2), c3=steps(), z0=ZERO["z0"],
    )  # fmt: skip


@graph(2, "w1 wd w2 wy")
def integer_convs() -> Net:
    """ConvInteger, one of them depthwise: the stem with the depthwise channels, the second."""
    body = _dynamic("ConvInteger<pads=[1,1,1,1]>", "x", "w1", "a", "c") + "h = Relu(a)"
    body += _dynamic("ConvInteger<pads=[1,1,1,1], group=12>", "h", "wd", "d", "c")
    body += "k = Relu(d)" + _dynamic("ConvInteger", "k", "w2", "e", "c") + "m = Relu(e)"
    body += _dynamic("ConvInteger", "m", "wy", "y", "c")
    return net(
        "(float[N,3,6,6] x) => (float[N,5,6,6] y)", body,
        w1=int8((12, 3, 3, 3), 1), wd=int8((12, 1, 3, 3), 2), w2=int8((9, 12, 1, 1), 3),
        wy=int8((5, 9, 1, 1), 4), c=steps(), z0=ZERO["z0"],
    )  # fmt: skip


def scales(names: str) -> dict[str, Weight]:
    """Steps of whole tensors, and the zero points of all of them."""
    return {**{f"s_{n}": np.array(0.03, np.float32) for n in names.split()}, **ZERO}


@graph(2, "w1 b1 wd w2 b2 wg")
def qlinear_net() -> Net:
    """Quantised activations throughout, per channel: the stem with the depthwise channels and the
    residual sum, and the second convolution, which a concatenation splits in two."""
    body = """xq = QuantizeLinear(x, s_xq, u0)
        aq = QLinearConv<pads=[1,1,1,1]>(xq, s_xq, u0, w1, c1, z12, s_aq, u0, b1)
        dq = QLinearConv<pads=[1,1,1,1], group=12>(aq, s_aq, u0, wd, cd, z12, s_dq, u0)
        lq = com.microsoft.QLinearLeakyRelu<alpha=0.1>(dq, s_dq, u0, s_lq, u0)
        rq = com.microsoft.QLinearAdd(lq, s_lq, u0, aq, s_aq, u0, s_rq, u0)
        cq = com.microsoft.QLinearConcat<axis=1>(s_cq, u0, rq, s_rq, u0, aq, s_aq, u0)
        eq = QLinearConv(cq, s_cq, u0, w2, c2, z9, s_eq, u0, b2)
        gq = com.microsoft.QLinearGlobalAveragePool(eq, s_eq, u0, s_gq, u0)
        fq = Flatten(gq)
        y = com.microsoft.QGemm<transB=1>(fq, s_gq, u0, wg, s_xq, z0)"""
    return net(
        "(float[N,3,6,6] x) => (float[N,7] y)", body,
        w1=int8((12, 3, 3, 3), 1), c1=steps(12, seed=1), b1=bias(12, 1),
        wd=int8((12, 1, 3, 3), 2), cd=steps(12, seed=2),
        w2=int8((9, 24, 1, 1), 3), c2=steps(9, seed=3), b2=bias(9, 2), wg=int8((7, 9), 4),
        z12=np.zeros(12, np.int8), z9=np.zeros(9, np.int8), **scales("xq aq dq lq rq cq eq gq"),
    )  # fmt: skip


@graph(1, "w1 w2", dims="N T")
def qlinear_products() -> Net:
    """QLinearMatMul over a batch of rows: the hidden layer, gated by its own sigmoid."""
    body = """xq = QuantizeLinear(x, s_xq, u0)
        aq = QLinearMatMul(xq, s_xq, u0, w1, c1, z16, s_aq, u0)
        dq = com.microsoft.QLinearSigmoid(aq, s_aq, u0, s_dq, u0)
        rq = com.microsoft.QLinearMul(aq, s_aq, u0, dq, s_dq, u0, s_rq, u0)
        eq = QLinearMatMul(rq, s_rq, u0, w2, s_lq, z0, s_eq, u0)
        y = DequantizeLinear(eq, s_eq, u0)"""
    return net(
        "(float[N,T,10] x) => (float[N,T,6] y)", body,
        w1=int8((10, 16), 1), c1=steps(16, seed=1), z16=np.zeros(16, np.int8),
        w2=int8((16, 6), 2), **scales("xq aq dq rq lq eq"),
    )  # fmt: skip


@graph(1, "w1 b1 w2", dims="N T")
def fused_dynamic_matmuls() -> Net:
    """As ONNX Runtime fuses integer products: DynamicQuantizeMatMul, MatMulIntegerToFloat."""
    body = """h = com.microsoft.DynamicQuantizeMatMul(x, w1, c1, z16, b1) r = Relu(h)
        q, s, z = DynamicQuantizeLinear(r)
        y = com.microsoft.MatMulIntegerToFloat(q, w2, s, ws, z, z0)"""
    return net(
        "(float[N,T,10] x) => (float[N,T,6] y)", body,
        w1=int8((10, 16), 1), c1=steps(16, seed=1), z16=np.zeros(16, np.int8), b1=16,
        w2=int8((16, 6), 2), ws=steps(), z0=ZERO["z0"],
    )  # fmt: skip


def _blocked(bits: int, k: int, n: int, seed: int, flat: bool) -> dict[str, Weight]:
    rng = np.random.default_rng(seed)
    blocks = k // 16
    stored = -(-blocks * bits // 8)
    shapes = [(n * blocks,), (n * stored,)] if flat else [(n, blocks), (n, stored)]
    return {
        f"w{seed}": rng.integers(0, 256, (n, blocks, 2 * bits)).astype(np.uint8),
        f"s{seed}": (rng.uniform(0.5, 1, shapes[0]) / 2**bits / 4).astype(np.float32),
        f"z{seed}": rng.integers(0, 256, shapes[1]).astype(np.uint8),
    }


def _matmul_nbits(bits: int, flat: bool) -> Net:
    """Two products; blocks of the second are units of four."""
    widths = (32, 64, 6)
    one, two = (_blocked(bits, widths[k], widths[k + 1], k + 1, flat) for k in (0, 1))
    calls = [f"com.microsoft.MatMulNBits<K={a}, N={b}, bits={bits}, block_size=16>"
             for a, b in itertools.pairwise(widths)]  # fmt: skip
    body = f"h = {calls[0]}(x, w1, s1, z1) r = Relu(h) y = {calls[1]}(r, w2, s2, z2)"
    return net("(float[N,T,32] x) => (float[N,T,6] y)", body, **one, **two)


@graph(1, "w1 s1 z1 w2 s2 z2", dims="N T")
def matmul_4bits() -> Net:
    """Blocks of 16 with two zero points in a byte: the hidden layer is two units of 32."""
    return _matmul_nbits(4, flat=False)


@graph(1, "w1 s1 z1 w2 s2 z2", dims="N T")
def matmul_8bits() -> Net:
    """Scales and zero points of all blocks in one row; the hidden layer is four units of 16."""
    return _matmul_nbits(8, flat=True)


@graph(1, "table s1 w2", dims="N T")
def quantised_embedding() -> Net:
    """An embedding in nibbles, looked up at run time, then a product: its width is one group."""
    rng = np.random.default_rng(0)
    body = """e = com.microsoft.GatherBlockQuantized<block_size=16, bits=4>(table, ids, s1, z1)
        y = MatMul(e, w2)"""
    return net(
        "(int64[N,T] ids) => (float[N,T,6] y)", body,
        table=rng.integers(0, 256, (12, 32)).astype(np.uint8),
        s1=rng.uniform(0.05, 0.1, (12, 4)).astype(np.float32),
        z1=rng.integers(0, 256, (12, 2)).astype(np.uint8), w2=(64, 6),
    )  # fmt: skip


@graph(2, "table w1 b1 w2", dims="N T")
def quantised_table() -> Net:
    """Rows of an 8-bit table, dequantised after the look-up, per tensor: its width, the hidden
    layer of 4 and 8 bits behind it."""
    body = """g = Gather(table, ids) e = DequantizeLinear(g, ws, z0)
        k = DequantizeLinear(w1, c1, z17) h = MatMul(e, k) hb = Add(h, b1) r = Relu(hb)
        m = DequantizeLinear(w2, ws, z0) y = MatMul(r, m)"""
    return net(
        "(int64[N,T] ids) => (float[N,T,6] y)", body,
        table=int8((12, 11), 1), w1=int8((11, 17), 2), c1=steps(17), z17=np.zeros(17, np.int8),
        b1=17, w2=int8((17, 6), 3), ws=steps(), z0=ZERO["z0"],
    )  # fmt: skip
