"""Probing operators: what their coupling rules claim against what they do.

A small model is analysed with nothing pinned from outside, then run:

- links: all elements at one coordinate of an input are perturbed. What changes in the outputs
  must lie at coordinates of the same unit, unless the axis is a declared sink or inexact, and
  every output coordinate of the unit must show a change;
- removal: units are removed with `rewrite`. The rewritten model on the sliced inputs must give
  the slices of what the original gives with its sinks multiplied by zero, and behind an inexact
  operator what the reference implementation gives on the kept coordinates (behind a convolution,
  where onnx.reference errs with groups, ONNX Runtime).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
from secateur.runtime.zero_points import ZERO_POINTS, zero_shape
from tests.probing_indices import integer_bounds
from tests.probing_runs import (
    Array,
    Feeds,
    close,
    draw,
    is_float,
    observer,
    reference,
    runs,
    runtime,
    sizeless,
)

COORDINATES = 40
"""At most this many coordinates per model are perturbed, and half as many pinned ones."""


@dataclass
class Report:
    """What one `probe` compared: links and removals by number, and what it noticed.

    ``units``: how many there are; ``inexact``: the rule says that the node looks across an axis.
    ``coarse``: a coordinate's unit is larger than its own reach (all of the unit's coordinates
    together reach everything). ``pinned``: pinned input axes that map one-to-one to an axis of
    an output. ``refused``: removals that cannot be written. ``reference``: no kernel in ONNX
    Runtime.
    """

    links: int = 0
    removals: int = 0
    units: int = 0
    inexact: bool = False
    refused: int = 0
    coarse: bool = False
    reference: bool = False
    pinned: list[str] = field(default_factory=list)


class Prober:
    """One model, its inputs and its analysis; the methods check and raise AssertionError."""

    def __init__(self, model: onnx.ModelProto, feeds: Feeds, seed: int = 0, **options: Any) -> None:
        self.model = model
        self.feeds = dict(feeds)
        self.rng = np.random.default_rng(seed)
        self.ops = "->".join(n.op_type for n in model.graph.node)
        self.run, on_reference = runtime(model)
        if not on_reference and not runs(self.run, feeds):
            self.run, on_reference = reference(model), True
        self.report = Report(reference=on_reference)
        source = oir.serde.deserialize_model(model)
        self.inputs = [v.name for v in model.graph.input]
        self.outputs = [v.name for v in model.graph.output]
        self.arrays = dict(zip(self.outputs, self.run(self.feeds), strict=True))
        options = {
            "interface": False,
            "weights_only": False,
            "observe": observer(model, feeds),
            **options,
        }
        self.analysis: Analysis = analyze(source, **options)
        statements = self.analysis.statements
        root = self.analysis.coupling.root
        ends = [self.analysis.units_of(s.axis) for s in statements.sinks]
        self.sinks = {int(unit) for units in ends if units is not None for unit in units}
        self.inexact = {root(s.axis) for s in statements.inexact}
        self.report.units, self.report.inexact = self.analysis.unit_count, bool(self.inexact)
        # Interpolation multiplies by weights of zero, and so spreads a NaN that it ignores.
        self.weighs = any(n.op_type in ("Resize", "Upsample") for n in model.graph.node)
        self.runs = self.failures = 0
        self.constant = set(self.outputs)
        self.tight = True
        self.bounds = {name: self._bounds(name) for name in self.inputs}

    def _bounds(self, name: str) -> tuple[int, int]:
        """Which integers are legal in an input."""
        for node in self.model.graph.node:
            for position, given in enumerate(node.input):
                found = integer_bounds(node, position, self.feeds) if given == name else None
                if found is not None:
                    return found
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
        if places:
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
        changed = [np.zeros(self.arrays[o].shape, np.bool_) for o in self.outputs]
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
            mask = np.zeros(self.arrays[name].shape, np.bool_)
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
            return [np.zeros(self.arrays[o].shape, np.bool_) for o in self.outputs]
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
        """A random set of units that leaves something of every axis, and of every factor of one."""
        removed = np.zeros(self.analysis.unit_count, np.bool_)
        roots = {self.analysis.coupling.root(a) for a in range(len(self.analysis.coupling.sizes))}
        axes = [u for root in sorted(roots) if (u := self.analysis.units_of(root)) is not None]
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
            zero = self._zero(sink.site, sink.input)
            feeds[name] = np.where(keep.reshape(shape), feeds[name], zero)
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
            convolves = any("Conv" in node.op_type for node in self.model.graph.node)
            run = runtime(sizeless(self.model))[0] if convolves else reference(self.model)
        return [
            self._cut(name, array, removed, gone)
            for name, array in zip(self.outputs, run(feeds), strict=True)
        ]

    def _zero(self, site: int, number: int) -> Array:
        """What stands for zero in an input: the zero point if it is quantised."""
        node = self.model.graph.node[site]
        array = self.feeds[self._input_name(site, number)]
        place = ZERO_POINTS.get(node.op_type, {}).get(number, len(node.input))
        if place >= len(node.input) or not node.input[place]:
            return np.zeros((), array.dtype)
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in self.model.graph.initializer}
        point = {**stored, **self.feeds}[node.input[place]]
        return point.reshape(zero_shape(node, number, array.ndim, point.shape))

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
            keep = self.analysis.keep(axis, removed)
            if (name, index) not in (gone or ()) and not keep.all():
                array = np.compress(keep, array, axis=index)
        return array


def probe(
    model: onnx.ModelProto,
    feeds: Feeds,
    *,
    seed: int = 0,
    find_pinned: bool = False,
    may_refuse: bool = False,
    removals: int = 4,
    tight: bool = True,
    **options: Any,
) -> Report:
    """Checks everything that the rules of a model's operators claim; AssertionError if wrong.

    ``tight`` False: links may claim more than is seen, as behind a padding that joins a unit.
    ``options`` are those of `analyze`.
    """
    prober = Prober(model, feeds, seed, **options)
    prober.tight = tight
    if not any(math.prod(a.shape) > 4096 for a in prober.feeds.values()):
        prober.check_links(find_pinned)
    prober.check_removal(removals, may_refuse)
    return prober.report
