"""Probing operators: what their coupling rules claim against what they do.

A small model is analysed with nothing pinned from outside, then run:

- links: all elements at one coordinate of an input are perturbed. What changes in the outputs
  must lie at coordinates of the same unit, unless the axis is a declared sink or inexact, and
  every output coordinate of the unit must show a change;
- removal: units are removed with `rewrite`. The rewritten model on the sliced inputs must give
  the slices of what the original gives with its sinks multiplied by zero, and behind an inexact
  operator what the reference implementation gives on the kept coordinates.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir

from secateur.ir.analysis import Analysis, analyze
from secateur.ir.errors import SecateurError
from secateur.ir.rewrite import rewrite
from secateur.ir.rules.base import Operand

os.environ.setdefault("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Run = Callable[[Feeds], list[Array]]

COORDINATES = 40
"""At most this many coordinates per model are perturbed, and half as many pinned ones."""

EPSILON = {
    oir.DataType.FLOAT16: 2**-10,
    oir.DataType.BFLOAT16: 2**-7,
    oir.DataType.FLOAT8E4M3FN: 2**-3,
    oir.DataType.FLOAT8E4M3FNUZ: 2**-3,
    oir.DataType.FLOAT8E5M2: 2**-2,
    oir.DataType.FLOAT8E5M2FNUZ: 2**-2,
    oir.DataType.FLOAT8E8M0: 1.0,
    oir.DataType.FLOAT4E2M1: 2**-1,
}
"""The distance from 1 to the next number of a narrow type."""

STRINGS = ["", "a", "www.google.com", "account@gmail.com"]
"""Perturbed strings; the addresses match the expressions of the backend's cases."""

SIZE_INPUTS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "Dropout": (1, 2),
    "Expand": (1,),
    "Gather": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1, 2),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""Inputs that hold sizes, axes or positions rather than data; Reduce* have theirs at 1."""


def size_inputs(op_type: str) -> tuple[int, ...]:
    return (1,) if op_type.startswith("Reduce") else SIZE_INPUTS.get(op_type, ())


@dataclass
class Report:
    """What one `probe` compared: links and removals by number, and what it noticed.

    ``coarse``: a coordinate's unit is larger than its own reach (all of the unit's coordinates
    together reach everything). ``pinned``: pinned input axes that map one-to-one to an axis of
    an output. ``refused``: removals that cannot be written. ``reference``: no kernel in ONNX
    Runtime.
    """

    links: int = 0
    removals: int = 0
    refused: int = 0
    coarse: bool = False
    reference: bool = False
    pinned: list[str] = field(default_factory=list)


# -- running ----------------------------------------------------------------------------------


def runtime(model: onnx.ModelProto) -> tuple[Run, bool]:
    """The model in ONNX Runtime as it is, or in onnx.reference (then True) without a kernel."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    narrow = {
        onnx.TensorProto.BFLOAT16,
        *(v for k, v in onnx.TensorProto.DataType.items() if k.startswith(("FLOAT8", "FLOAT4"))),
        *(v for k, v in onnx.TensorProto.DataType.items() if k.endswith(("INT4", "INT2"))),
    }
    ends = (*model.graph.input, *model.graph.output)
    if not any(v.type.tensor_type.elem_type in narrow for v in ends):
        try:
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:  # no kernel for this operator, type or opset
            return reference(model), True
        return lambda feeds: list(session.run(None, dict(feeds))), False
    return reference(model), True


def reference(model: onnx.ModelProto) -> Run:
    """The model in numpy."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model, new_ops=_numpy_operators())

    def run(feeds: Feeds) -> list[Array]:
        with np.errstate(all="ignore"):
            return [np.asarray(v) for v in evaluator.run(None, dict(feeds))]

    return run


def _numpy_operators() -> list[type[Any]]:
    """LRN and MeanVarianceNormalization by the standard's formulas: in onnx.reference one skips
    channels and the other cancels digits."""
    from onnx.reference.op_run import OpRun

    class LRN(OpRun):
        def _run(self, x: Array, alpha: float, beta: float, bias: float, size: int) -> Any:
            sums = [
                np.square(x[:, max(c - (size - 1) // 2, 0) : c + size // 2 + 1]).sum(axis=1)
                for c in range(x.shape[1])
            ]
            scale = bias + alpha / size * np.stack(sums, axis=1)
            return ((x / scale**beta).astype(x.dtype),)

    class MeanVarianceNormalization(OpRun):
        def _run(self, x: Array, axes: Sequence[int] | None = None) -> Any:
            over = tuple(axes or (0, 2, 3))
            wide = x.astype(np.float64)
            centred = wide - wide.mean(axis=over, keepdims=True)
            deviation = np.sqrt(np.square(centred).mean(axis=over, keepdims=True))
            return ((centred / (deviation + 1e-9)).astype(x.dtype),)

    return [LRN, MeanVarianceNormalization]


def freeze(model: onnx.ModelProto, values: Feeds) -> onnx.ModelProto:
    """Graph inputs turned into initializers."""
    frozen = onnx.ModelProto()
    frozen.CopyFrom(model)
    kept = [v for v in frozen.graph.input if v.name not in values]
    del frozen.graph.input[:]
    frozen.graph.input.extend(kept)
    for name, array in values.items():
        frozen.graph.initializer.append(oir.serde.serialize_tensor(oir.tensor(array, name=name)))
    return frozen


# -- perturbing -------------------------------------------------------------------------------


def is_float(dtype: np.dtype[Any]) -> bool:
    if dtype.kind in "fbiuOUS":
        return dtype.kind == "f"
    return oir.DataType.from_numpy(dtype).is_floating_point()


def limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The least and the greatest number of an integer type."""
    kind = oir.DataType.from_numpy(dtype)
    bits = int(8 * kind.itemsize)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind.is_signed() else (0, 2**bits - 1)


def draw(rng: np.random.Generator, like: Array, scale: float, bounds: tuple[int, int]) -> Array:
    """Random values of the type and shape of ``like``; integers come from ``bounds``.

    With scale 1 they are small whole numbers, so that some are equal."""
    dtype = like.dtype
    if dtype == np.bool_:
        return np.asarray(rng.random(like.shape) < 0.5)
    if dtype.kind in "OUS":
        return np.asarray(rng.choice(STRINGS, like.shape)).astype(object)
    if is_float(dtype):
        values = np.asarray(scale * rng.standard_normal(like.shape))
        return (np.round(values) if scale == 1 else values).astype(dtype)
    low, high = bounds if scale != 1 else (max(bounds[0], -2), min(bounds[1], 2))
    least, most = limits(dtype)
    low, high = max(low, least), min(high, most)
    return np.asarray(rng.integers(low, high, like.shape, endpoint=True)).astype(dtype)


def _runs(run: Run, feeds: Feeds) -> bool:
    try:
        run(feeds)
    except Exception:  # this kernel does not take these inputs
        return False
    return True


class Prober:
    """One model, its inputs and its analysis; the methods check and raise AssertionError."""

    def __init__(self, model: onnx.ModelProto, feeds: Feeds, seed: int = 0, **options: Any) -> None:
        self.model = model
        self.feeds = dict(feeds)
        self.rng = np.random.default_rng(seed)
        self.ops = "->".join(n.op_type for n in model.graph.node)
        self.run, on_reference = runtime(model)
        if not on_reference and not _runs(self.run, feeds):
            self.run, on_reference = reference(model), True
        self.report = Report(reference=on_reference)
        source = oir.serde.deserialize_model(model)
        self.analysis: Analysis = analyze(source, interface=False, weights_only=False, **options)
        self.inputs = [v.name for v in model.graph.input]
        self.outputs = [v.name for v in model.graph.output]
        statements = self.analysis.statements
        root = self.analysis.coupling.root
        ends = [self.analysis.units_of(s.axis) for s in statements.sinks]
        self.sinks = {int(unit) for units in ends if units is not None for unit in units}
        self.inexact = {root(s.axis) for s in statements.inexact}
        # Interpolation multiplies by weights of zero, and so spreads a NaN that it ignores.
        self.weighs = any(n.op_type in ("Resize", "Upsample") for n in model.graph.node)
        self.runs = self.failures = 0
        self.constant = set(self.outputs)
        self.tight = True
        self.bounds = {name: self._bounds(name) for name in self.inputs}

    def _bounds(self, name: str) -> tuple[int, int]:
        """Which integers are legal: no zero divisors, no positions outside an axis."""
        for node in self.model.graph.node:
            for position, given in enumerate(node.input):
                if given != name:
                    continue
                if node.op_type in ("Div", "Mod") and position == 1:
                    return 1, 100
                if node.op_type == "BitShift" and position == 1:
                    return 0, 7
                if node.op_type == "Gather" and position == 1:
                    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                    size = self.feeds[node.input[0]].shape[axis]
                    return -size, size - 1
                if position in size_inputs(node.op_type):
                    return 0, 0
                if node.op_type == "Pow" and position == 1:
                    return 0, 3
        return -100, 100

    def operand(self, name: str) -> Operand:
        found = self.analysis.operands[name]
        assert found is not None
        return found

    def axes(self, names: Sequence[str]) -> Iterator[tuple[str, int, int]]:
        """(value, axis index, axis number) of every axis of these values."""
        for name in names:
            if name in self.analysis.operands:
                for index, axis in enumerate(self.operand(name).axes):
                    yield name, index, axis

    # -- links ------------------------------------------------------------------------------

    def check_links(self, find_pinned: bool = False) -> None:
        """Perturbs coordinates of units, one by one."""
        analysis = self.analysis
        places: list[tuple[str, int, int, int, int]] = []
        for name, index, axis in self.axes(self.inputs):
            units = analysis.units_of(axis)
            if units is None or not self.feeds[name].size:
                continue
            places += [(name, index, axis, i, int(u)) for i, u in enumerate(units) if u >= 0]
        if len(places) > COORDINATES:
            chosen = self.rng.choice(len(places), COORDINATES, replace=False)
            places = [places[k] for k in sorted(chosen)]
        leaked: dict[int, bool] = {}
        self._find_constant_outputs()
        for name, index, axis, i, unit in places:
            outside = self._check_coordinate(name, index, i, unit, analysis.coupling.root(axis))
            root = analysis.coupling.root(axis)
            if root in self.inexact and self.feeds[name].shape[index] > 1:
                leaked[root] = leaked.get(root, False) or outside
            self.report.links += 1
        for root, outside in leaked.items():
            owner, index = analysis.owners[root]
            sampled = len(places) == COORDINATES
            assert outside or sampled, f"{self.ops}: axis {index} of {owner} is exact after all"
        assert 2 * self.failures <= self.runs, f"{self.ops}: most perturbed inputs are refused"
        if find_pinned:
            self._find_pinned()

    def _find_constant_outputs(self) -> None:
        """Outputs that depend on no input (a mask of ones) only follow the others' sizes."""
        everything = [
            (name, 0, i)
            for name in self.inputs
            if self.feeds[name].ndim and self.bounds[name] != (0, 0)
            for i in range(self.feeds[name].shape[0])
        ]
        for attempt in range(12):
            for name, changed in zip(self.outputs, self._perturb(everything, attempt), strict=True):
                if changed.any():
                    self.constant.discard(name)

    def _check_coordinate(self, name: str, index: int, i: int, unit: int, root: int) -> bool:
        """Checks one coordinate of a unit; True if something outside the unit changed."""
        where = f"{self.ops}: coordinate {i} of axis {index} of {name} (unit {unit})"
        slabs = self._slabs(unit)
        changed = [np.zeros(self.operand(o).shape, np.bool_) for o in self.outputs]
        for attempt in range(12):
            for total, new in zip(changed, self._perturb([(name, index, i)], attempt), strict=True):
                total |= new
            if attempt >= 2 and not (self.tight and self._missing(slabs, changed)):
                break
        stray = [
            f"{o}{np.argwhere(c & ~allowed)[0].tolist()}"
            for o, c, (allowed, _) in zip(self.outputs, changed, slabs, strict=True)
            if (c & ~allowed).any()
        ]
        if unit not in self.sinks and root not in self.inexact:
            assert not stray, f"{where} also reaches {stray[0]}: a link is missing"
        if self.tight and self._missing(slabs, changed):
            self.report.coarse = True
            together = [
                (n, k, j)
                for n, k, axis in self.axes(self.inputs)
                if (units := self.analysis.units_of(axis)) is not None
                for j in np.flatnonzero(units == unit).tolist()
            ]
            for attempt in range(12):
                for total, new in zip(changed, self._perturb(together, attempt), strict=True):
                    total |= new
            missing = self._missing(slabs, changed)
            assert not missing, f"{where} does not reach {missing[0]}: a link is too much"
        return bool(stray)

    def _slabs(self, unit: int) -> list[tuple[npt.NDArray[np.bool_], list[tuple[str, int, int]]]]:
        """For each output, which elements go with the unit, and its (output, axis, coordinate)."""
        result = []
        for name in self.outputs:
            operand = self.operand(name)
            mask = np.zeros(operand.shape, np.bool_)
            linked: list[tuple[str, int, int]] = []
            for index, axis in enumerate(operand.axes):
                units = self.analysis.units_of(axis)
                if units is not None:
                    hit = np.flatnonzero(units == unit)
                    np.moveaxis(mask, index, 0)[hit] = True
                    linked += [(name, index, int(j)) for j in hit]
            result.append((mask, linked))
        return result

    def _missing(
        self,
        slabs: list[tuple[npt.NDArray[np.bool_], list[tuple[str, int, int]]]],
        changed: list[npt.NDArray[np.bool_]],
    ) -> list[str]:
        """Linked output coordinates at which nothing has changed so far."""
        return [
            f"coordinate {j} of axis {index} of {output}"
            for mask, (_, linked) in zip(changed, slabs, strict=True)
            if mask.size
            for output, index, j in linked
            if output not in self.constant and not np.take(mask, j, axis=index).any()
        ]

    def _perturb(
        self, places: Sequence[tuple[str, int, int]], attempt: int
    ) -> list[npt.NDArray[np.bool_]]:
        """Which output elements change; every attempt perturbs differently, from other inputs."""
        base = dict(self.feeds)
        if attempt > 1:
            for name, array in base.items():
                if self.bounds[name] != (0, 0):
                    base[name] = draw(self.rng, array, (0.5, 1, 4)[attempt % 3], self.bounds[name])
        moved = {name: base[name].copy() for name, _, _ in places}
        for name, index, i in places:
            slab = np.moveaxis(moved[name], index, 0)[i : i + 1]
            if attempt % 4 < 2 and is_float(slab.dtype) and not self.weighs:
                infinite = np.inf if attempt % 8 < 4 else -np.inf
                slab[...] = np.array(infinite if attempt % 4 else np.nan).astype(slab.dtype)
            elif slab.dtype == np.bool_:
                slab[...] = ~slab
            else:
                slab[...] = draw(self.rng, slab, (1, 10, 100)[attempt % 3], self.bounds[name])
        self.runs += 1
        try:
            old, new = self.run(base), self.run(base | moved)
        except Exception:  # a value that this operator does not take
            self.failures += 1
            return [np.zeros(self.operand(o).shape, np.bool_) for o in self.outputs]
        return [~((a == b) | ((a != a) & (b != b))) for a, b in zip(old, new, strict=True)]

    def _find_pinned(self) -> None:
        """Notes pinned axes whose coordinates reach disjoint coordinates of an output axis."""
        for name, index, axis in self.axes(self.inputs):
            size = self.feeds[name].shape[index]
            if self.analysis.units_of(axis) is not None or size < 2 or self.bounds[name] == (0, 0):
                continue
            if size > COORDINATES // 2:
                continue
            changed = []
            for i in range(size):
                rounds = [self._perturb([(name, index, i)], attempt) for attempt in range(3)]
                changed.append([np.logical_or.reduce(parts) for parts in zip(*rounds, strict=True)])
            for k, output in enumerate(self.outputs):
                for b in range(self.operand(output).rank):
                    others = tuple(a for a in range(self.operand(output).rank) if a != b)
                    reach = np.stack([c[k].any(axis=others) for c in changed])
                    if reach.any(axis=1).all() and (reach.sum(axis=0) <= 1).all():
                        self.report.pinned.append(f"{name}[{index}] -> {output}[{b}]")

    # -- removal ----------------------------------------------------------------------------

    def check_removal(self, sets: int = 4, may_refuse: bool = False) -> None:
        """Removes single units and random sets of units."""
        count = self.analysis.unit_count
        seen: set[bytes] = set()
        for k in range(sets):
            removed = self._choose(1 if k < 2 else count)
            if not removed.any() or removed.tobytes() in seen:
                continue
            seen.add(removed.tobytes())
            try:
                rewritten = rewrite(self.analysis, removed).model
            except SecateurError:
                if not may_refuse:
                    raise
                self.report.refused += 1
                continue
            self._compare(oir.serde.serialize_model(rewritten), removed)
            self.report.removals += 1

    def _choose(self, most: int) -> npt.NDArray[np.bool_]:
        """A random set of units that leaves something of every axis."""
        removed = np.zeros(self.analysis.unit_count, np.bool_)
        axes = [
            units
            for operand in self.analysis.operands.values()
            for axis in operand.axes
            if (units := self.analysis.units_of(axis)) is not None
        ]
        for unit in self.rng.permutation(removed.size)[:30]:
            if removed.sum() >= most or (most > 1 and self.rng.random() < 0.4):
                continue
            removed[unit] = True
            kept = [((u < 0) | ~removed[u]).sum() for u in axes]
            # Statistics of a single value are degenerate: leave two where there are three.
            least = [min(u.size, 2 if self.inexact and u.size > 2 else 1) for u in axes]
            if any(k < n for k, n in zip(kept, least, strict=True)):
                removed[unit] = False
        return removed

    def _compare(self, rewritten: onnx.ModelProto, removed: npt.NDArray[np.bool_]) -> None:
        where = f"{self.ops} without units {np.flatnonzero(removed).tolist()}"
        run = reference(rewritten) if self.report.reference else runtime(rewritten)[0]
        sliced = {name: self._cut(name, array, removed) for name, array in self.feeds.items()}
        got = run({v.name: sliced[v.name] for v in rewritten.graph.input})
        expected = self._expected(removed)
        for info, a, b in zip(rewritten.graph.output, got, expected, strict=True):
            assert a.shape == b.shape, f"{where}: {info.name} is {a.shape}, not {b.shape}"
            declared = info.type.tensor_type
            dims = declared.shape.dim
            if declared.HasField("shape") and all(d.HasField("dim_value") for d in dims):
                stated = tuple(d.dim_value for d in dims)
                assert stated == a.shape, f"{where}: {info.name} is declared {stated}"
            eps = 1e-5 if self.inexact else 1e-6  # two implementations differ more than one
            close(a, b, f"{where}: {info.name}", eps)

    def _expected(self, removed: npt.NDArray[np.bool_]) -> list[Array]:
        statements = self.analysis.statements
        feeds = dict(self.feeds)
        for sink in statements.sinks:
            name = self._input_name(sink.site, sink.input)
            keep = self.analysis.keep(sink.axis, removed)
            shape = [-1 if k == sink.index else 1 for k in range(feeds[name].ndim)]
            feeds[name] = np.where(keep.reshape(shape), feeds[name], np.zeros_like(feeds[name]))
        gone: set[tuple[str, int]] = set()
        for inexact in statements.inexact:
            keep = self.analysis.keep(inexact.axis, removed)
            for number, index in inexact.inputs:
                name = self._input_name(inexact.site, number)
                feeds[name] = np.compress(keep, feeds[name], axis=index)
            outputs = self.analysis.sites[inexact.site].outputs
            gone |= {(o.name, index) for k, index in inexact.outputs if (o := outputs[k])}
        run = self.run
        if statements.inexact:
            run = reference(self.model)
        return [
            self._cut(name, array, removed, gone)
            for name, array in zip(self.outputs, run(feeds), strict=True)
        ]

    def _input_name(self, site: int, number: int) -> str:
        operand = self.analysis.sites[site].inputs[number]
        assert operand is not None
        return operand.name

    def _cut(
        self,
        name: str,
        array: Array,
        removed: npt.NDArray[np.bool_],
        gone: set[tuple[str, int]] | None = None,
    ) -> Array:
        if name not in self.analysis.operands:  # an input that no node reads
            return array
        for index, axis in enumerate(self.operand(name).axes):
            if (name, index) not in (gone or ()):
                array = np.compress(self.analysis.keep(axis, removed), array, axis=index)
        return array


def close(a: Array, b: Array, where: str, eps: float) -> None:
    """Equal, or for floats equal up to the reordering of a sum."""
    if not is_float(a.dtype):
        np.testing.assert_array_equal(a, b, err_msg=where)
        return
    narrow = a.dtype.itemsize <= 2
    eps = EPSILON[oir.DataType.from_numpy(a.dtype)] if narrow else eps
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    finite = np.abs(wide_b[np.isfinite(wide_b)])
    largest = float(finite.max()) if finite.size else 0.0
    tolerance = 2 * eps if narrow else eps
    np.testing.assert_allclose(
        wide_a, wide_b, rtol=tolerance, atol=tolerance * max(largest, 1e-3), err_msg=where
    )


def probe(
    model: onnx.ModelProto,
    feeds: Feeds,
    *,
    seed: int = 0,
    find_pinned: bool = False,
    may_refuse: bool = False,
    removals: int = 4,
    tight: bool = True,
) -> Report:
    """Checks everything that the rules of a model's operators claim; AssertionError if wrong.

    ``tight`` False: links may claim more than is seen, as behind a padding that joins a unit.
    """
    prober = Prober(model, feeds, seed)
    prober.tight = tight
    if not any(math.prod(a.shape) > 4096 for a in prober.feeds.values()):
        prober.check_links(find_pinned)
    prober.check_removal(removals, may_refuse)
    return prober.report
