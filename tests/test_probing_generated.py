"""Coupling rules against generated nodes and short chains of movement operators (see `probing`).

``SECATEUR_NIGHTLY=n`` multiplies the number of examples by n.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import pytest
from onnx import helper

from secateur.ir.rules import RULES
from tests import probing_arithmetic as arithmetic
from tests import probing_indexing as indexing
from tests import probing_ml as ml
from tests import probing_movement as movement
from tests import probing_recurrent as recurrent
from tests import probing_sampling as sampling
from tests.probing import probe
from tests.probing_draw import INT_MAX, Case, Draw, draws, factored, i64, model
from tests.probing_runs import Array

FAMILIES: dict[str, tuple[Callable[[Draw], Case], int]] = {
    f"{f.__module__.removeprefix('tests.probing_')}.{f.__name__}": (f, count)
    for count, functions in {
        20: [
            indexing.center_crop_pad,
            indexing.det,
            indexing.dft,
            indexing.drawn,
            indexing.one_hot,
            indexing.pinned,
            indexing.reverse_sequence,
            indexing.stft,
            indexing.tensor_scatter,
            indexing.trilu,
            ml.array_feature_extractor,
            ml.elementwise,
            ml.feature_vectorizer,
            ml.linear,
            ml.normalizer,
            ml.one_hot_encoder,
            ml.per_feature,
            ml.trees,
            ml.vectors,
            sampling.affine_grid,
            sampling.col2im,
            sampling.max_roi_pool,
            sampling.max_unpool,
            sampling.resize_crop,
            sampling.resize_cubic,
            arithmetic.cast_like,
            movement.constant_of_shape,
            arithmetic.dropout,
            arithmetic.instance_normalization,
            movement.sizes,
            movement.tile,
            arithmetic.upsample,
        ],
        40: [
            indexing.compress,
            indexing.gather_elements,
            indexing.gather_nd,
            indexing.gather_tables,
            indexing.scatter_elements,
            indexing.scatter_nd,
            sampling.deform_conv,
            sampling.grid_sample,
            sampling.loss,
            sampling.roi_align,
            arithmetic.arg_extreme,
            arithmetic.batch_normalization,
            movement.concat,
            arithmetic.cumulative,
            movement.depth_space,
            movement.expand,
            movement.flatten,
            arithmetic.gemm,
            arithmetic.layer_normalization,
            movement.pad,
            arithmetic.pool,
            arithmetic.prelu,
            arithmetic.softmax,
            movement.split,
            movement.squeeze,
            recurrent.rnn,
            arithmetic.top_k,
            movement.transpose,
            movement.unsqueeze,
        ],
        60: [
            arithmetic.conv,
            arithmetic.conv_transpose,
            movement.gather,
            arithmetic.group_normalization,
            recurrent.gru,
            recurrent.lstm,
            arithmetic.matmul,
            arithmetic.other_normalization,
            movement.quantize,
            arithmetic.reduce_,
            movement.reshape,
            arithmetic.resize,
            movement.slice_,
        ],
        180: [arithmetic.nary, arithmetic.unary],
    }.items()
    for f in functions
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_generated(family: str) -> None:
    """Every operator that is generated is compared, or else holds everything."""
    make, count = FAMILIES[family]
    compared: Counter[str] = Counter()
    seen: Counter[str] = Counter()

    for d in draws(family, count):
        made, feeds = make(d)
        try:
            report = probe(made, feeds, removals=3)
        except Exception as error:
            text = onnx.printer.to_text(made)
            raise AssertionError(f"{error}\n{text}") from error
        rules = {n.op_type: RULES[n.domain, n.op_type] for n in made.graph.node}
        if any(rule.exactness == "pinned" for rule in rules.values()):
            assert not report.units
            continue
        if any(array.size > 1 for array in feeds.values()):
            seen.update(rules.keys())
        if report.links or report.removals:
            compared.update(rules.keys())
    assert set(compared) >= set(seen)
    assert 3 * compared.total() >= seen.total()


# -- chains ------------------------------------------------------------------------------------


MOVES = (
    *("Concat", "Flatten", "Gather", "Pad", "Reshape"),
    *("Slice", "Split", "Tile", "Transpose", "Unsqueeze"),
)


class Chain:
    """A growing chain of movement operators; numpy keeps track of the shape."""

    def __init__(self, d: Draw) -> None:
        self.d = d
        self.x = d.floats(*(d.pick([1, 2, 3, 4, 6]) for _ in range(d.number(1, 3))))
        self.shape = list(self.x.shape)
        self.nodes: list[onnx.NodeProto] = []
        self.values: dict[str, Array] = {"x": self.x}
        self.last = "x"

    def add(self, op: str, shape: Sequence[int], *constants: Array, **attributes: Any) -> None:
        number = len(self.nodes)
        names = [f"c{number}_{k}" for k in range(len(constants))]
        self.values.update(zip(names, constants, strict=True))
        self.nodes.append(helper.make_node(op, [self.last, *names], [f"y{number}"], **attributes))
        self.last, self.shape = f"y{number}", list(shape)

    def grow(self) -> None:
        d, shape = self.d, self.shape
        rank = len(shape)
        axis = d.number(0, rank - 1)

        def resized(size: int) -> list[int]:
            return [size if k == axis else s for k, s in enumerate(shape)]

        op = d.pick(MOVES)
        if op == "Transpose":
            perm = d.order(range(rank))
            self.add(op, [shape[p] for p in perm], perm=perm)
        elif op == "Reshape":
            primes = [p for s in shape for p in {4: [2, 2], 6: [2, 3], 8: [2, 4]}.get(s, [s])]
            target = factored(d, primes)
            self.add(op, target, i64(*target))
        elif op == "Slice":
            start, step = d.number(0, shape[axis] - 1), d.pick([1, 1, 2])
            bounds = i64(start), i64(INT_MAX), i64(axis), i64(step)
            self.add(op, resized(len(range(start, shape[axis], step))), *bounds)
        elif op == "Concat":
            self.nodes.append(
                helper.make_node(op, [self.last, self.last], [f"y{len(self.nodes)}"], axis=axis)
            )
            self.last, self.shape = f"y{len(self.nodes) - 1}", resized(2 * shape[axis])
        elif op == "Pad":
            before, after = d.number(0, 2), d.number(0, 2)
            pads = [0] * (2 * rank)
            pads[axis], pads[axis + rank] = before, after
            self.add(op, resized(shape[axis] + before + after), i64(*pads))
        elif op == "Gather":
            indices = d.rng.integers(0, shape[axis], d.number(1, 4))
            self.add(op, resized(indices.size), indices, axis=axis)
        elif op == "Unsqueeze":
            at = d.number(0, rank)
            self.add(op, [*shape[:at], 1, *shape[at:]], i64(at))
        elif op == "Flatten":
            self.add(op, [math.prod(shape[:axis]), math.prod(shape[axis:])], axis=axis)
        elif op == "Tile":
            repeats = [d.number(1, 2) if k == axis else 1 for k in range(rank)]
            self.add(op, [s * r for s, r in zip(shape, repeats, strict=True)], i64(*repeats))
        elif shape[axis] > 1:
            first = d.number(1, shape[axis] - 1)
            self.add(op, resized(first), i64(first, shape[axis] - first), axis=axis)
            self.nodes[-1].output.append(f"z{len(self.nodes)}")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_chains_of_movement() -> None:
    """Every value reaches what its units say, and removal holds; sizes are restated in a row."""
    compared = 0

    for d in draws("chains", 200):
        chain = Chain(d)
        for _ in range(d.number(2, 4)):
            if math.prod(chain.shape) < 500 and len(chain.shape) < 6:
                chain.grow()
        if not chain.nodes:
            continue
        constant = set(chain.values) - {"x"}
        made, feeds = model(chain.nodes, chain.values, [chain.last], d.opset(13), constant)
        try:
            report = probe(made, feeds, tight=False)
        except Exception as error:
            raise AssertionError(f"{error}\n{onnx.printer.to_text(made)}") from error
        compared += bool(report.removals)
    assert compared >= 100
