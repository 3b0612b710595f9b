"""Comparing two models: equal up to floating-point reordering.

Both models run on the same feeds, with graph optimisation off and on, each against the other at
the same level. For an output with reference a and candidate b the relative error is

    max|a - b| / max|a|        (over the elements that are finite in both),

NaN and infinity must be at the same places, shapes and types must agree. It may be at most

    tolerance = max(base, min(4 * noise, cap)).

``base`` allows for another order of summation in the output's type. A sum of n terms rounds like
sqrt(n) units of roundoff u, and a few hundred u cover deep float32 networks; the 16-bit types are
accumulated wider and rounded once per layer, so about ten u do; see `BASE`. ``noise`` is what
rounding does to this very model on this very feed: how far the *reference alone* moves between
optimisation off and on, and when its float inputs are perturbed by up to 4 units in the last
place. The latter is run only where a difference asks for it, since more noise never makes a
verdict stricter. Noise lets ill-conditioned models pass, and ``cap`` limits it: 1e-3 in float32,
more where the model computes in 16 bits; see `CAP`. Noise of up to 4 units in the last place of 1
counts whatever the scale: Sigmoid and Softmax round near 1 on their way to a tiny value.

On one feed rounding may happen to move nothing, all the more where an output has few elements, so
what it does to the same output on other feeds counts as well. With the noise e_j on feed j, where
the scale is s_j, that of feed i is

    max(e_i, max_j min(e_j, max(s_i * e_j / s_j, 4 units in the last place of 1))).

Neither the noise of a large result nor that of one that cancels so widens what others may differ
by: on one feed it has to be noise both in the output's unit and relative to its scale, or be that
of numbers near 1.

A quantised model rounds to steps, and the slightest difference flips some of them. It is perturbed
by 2^-10 instead (a quarter of an 8-bit step of the largest value), so that the measured noise
contains flips; the cap is 0.1, and the mean error may be at most a fifth of the tolerance.

Integers, bools and strings must be equal, except at the elements that the noise runs themselves
change. Integer outputs of quantised models are compared like floats, without a base.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto

from ..ir.errors import CertificateError
from ..ir.protos import model_bodies, model_nodes
from .elements import Bools, differences, epsilon, finite, is_float, same, wide
from .runnable import Runner, run_feeds, runner
from .session import Array, Feed

LabelledFeed: TypeAlias = tuple[str, Feed]
Progress: TypeAlias = Callable[[int, int], None]

# Unit roundoff: float64 1.1e-16, float32 6e-8, float16 4.9e-4, bfloat16 2e-3.
BASE = {"float64": 1e-11, "float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}
CAP = {"float64": 1e-9, "float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
QUANTISED_CAP = 0.1
_ULPS = 4
_DRAWS = 4
"""Perturbed runs per feed: one alone may happen to move nothing."""


@dataclass(frozen=True)
class Run:
    """One output of one feed at one optimisation level (``"off"`` or ``"on"``).

    ``error``: max|a - b|; ``scale``: max|a|; ``relative``: error / scale; ``noise``: the same
    ratio for the reference against itself, on this feed or others; all in the output's own unit or
    without one.
    """

    label: str
    optimisation: str
    output: str
    error: float
    scale: float
    relative: float
    noise: float
    tolerance: float
    ok: bool


@dataclass(frozen=True)
class Comparison:
    """All runs; ``unproven`` lists outputs that never had a finite element to compare, and
    ``constant`` those that were the same on every one of several feeds."""

    runs: tuple[Run, ...]
    unproven: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every run stayed within its tolerance and something was compared."""
        outputs = {entry.output for entry in self.runs}
        return bool(outputs - set(self.unproven)) and all(entry.ok for entry in self.runs)

    def joined(self, other: Comparison | None) -> Comparison:
        """Both comparisons as one."""
        if other is None:
            return self
        return replace(self, runs=self.runs + other.runs)

    @property
    def worst(self) -> Run | None:
        """The run that is nearest to its tolerance, or furthest beyond it; of equal ones, one that
        may differ at all."""
        key: Callable[[Run], tuple[bool, float, float]] = lambda entry: (  # noqa: E731
            not entry.ok,
            entry.relative / entry.tolerance if entry.tolerance else entry.relative,
            entry.tolerance,
        )
        return max(self.runs, key=key, default=None)


@dataclass(frozen=True)
class _Noise:
    """How far the reference moves by itself: largest error, and where elements changed."""

    error: float
    changed: Bools

    def joined(self, other: _Noise) -> _Noise:
        return _Noise(max(self.error, other.error), self.changed | other.changed)


def compare_models(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    feeds: Sequence[LabelledFeed],
    *,
    threads: int = 0,
    cap: float | None = None,
    levels: Sequence[str] = ("off", "on"),
    quantised: bool | None = None,
    fixed: Collection[str] = (),
    operands: Collection[str] = (),
    progress: Progress | None = None,
) -> Comparison:
    """Run both models on every labelled feed and hold them to the module's tolerance.

    ``cap`` replaces the cap on the noise; ``levels`` are the optimisation levels to run at;
    ``quantised`` says whether activations are rounded (default: `is_quantised`). ``fixed`` are
    inputs that are never perturbed. Of the outputs ``operands`` the scale is that of the elements
    that differ, and that noise moves in the reference: a large number that fills in for a missing
    one must not hide them, be it another one in the candidate.
    ``progress`` gets (done, total) model runs. Sessions are built once per model and level, one
    at a time. Raises CertificateError when a model does not load or run, or when their outputs
    have different names.
    """
    quantised = is_quantised(reference) if quantised is None else quantised
    limit = cap if cap is not None else _cap(reference, quantised)
    total, done = 2 * len(levels) * len(feeds), 0

    def runs(
        model: onnx.ModelProto, level: str, what: str
    ) -> Iterator[tuple[int, dict[str, Array]]]:
        nonlocal done
        optimize = level == "on"
        inputs = [feed for _, feed in feeds]
        results = named(what, run_feeds, model, inputs, threads=threads, optimize=optimize)
        for i, (label, _) in enumerate(feeds):
            outputs = named(f"{what} on {label}", next, results)
            done += 1
            if progress is not None:
                progress(done, total)
            yield i, outputs

    def judge(
        i: int, level: str, outputs: Mapping[str, Array], perturbed: bool = False
    ) -> list[Run]:
        if outputs.keys() != expected[level][i].keys():
            odd = sorted(outputs.keys() ^ expected[level][i].keys())
            raise CertificateError(f"only one of the two models has the output {odd[0]!r}")
        return [
            replace(
                _judge(
                    wanted,
                    outputs[name],
                    replace(noises[i][name], error=shared[name][i]),
                    limit,
                    quantised,
                    name in operands,
                    perturbed,
                ),
                label=feeds[i][0],
                optimisation=level,
                output=name,
            )
            for name, wanted in expected[level][i].items()
        ]

    expected = {level: [o for _, o in runs(reference, level, "the reference")] for level in levels}
    first = expected[levels[0]]
    noises = [{name: _noise(array, None) for name, array in outputs.items()} for outputs in first]
    for others in expected.values():
        for noise, outputs, other in zip(noises, first, others, strict=True):
            for name, array in outputs.items():
                noise[name] = noise[name].joined(_noise(array, other.get(name)))
    shared = _shared(first, noises)
    judged: dict[tuple[str, int], list[Run]] = {}
    doubtful: dict[tuple[str, int], dict[str, Array]] = {}
    for level in levels:
        for i, outputs in runs(candidate, level, "the candidate"):
            judged[level, i] = judge(i, level, outputs)
            if not all(record.ok for record in judged[level, i]):
                doubtful[level, i] = outputs
    if doubtful:
        optimize = levels[0] == "on"
        again = named("the reference", runner, reference, threads=threads, optimize=optimize)
        for i in sorted({i for _, i in doubtful}):
            for draw in range(_DRAWS * i, _DRAWS * (i + 1)):
                moved = _perturbed_run(again, feeds[i][1], draw, quantised, fixed)
                for name, array in moved.items():
                    noises[i][name] = noises[i][name].joined(_noise(first[i][name], array))
        shared = _shared(first, noises)
        judged |= {(level, i): judge(i, level, o, True) for (level, i), o in doubtful.items()}
    records = [record for entry in judged.values() for record in entry]
    names = first[0].keys() if feeds else ()
    unproven = tuple(n for n in names if not any(finite(o[n]).any() for o in first))
    constant = tuple(n for n in names if _is_constant([o[n] for o in first]))
    return Comparison(tuple(records), unproven, constant)


def _perturbed_run(
    again: Runner, feed: Feed, index: int, quantised: bool, fixed: Collection[str]
) -> dict[str, Array]:
    """The outputs on the perturbed feed; none when there is nothing to perturb or it fails."""
    if not any(is_float(array) for name, array in feed.items() if name not in fixed):
        return {}
    try:
        return again(_perturbed(feed, index, quantised, fixed))
    except CertificateError:  # then optimisation alone measures the noise
        return {}


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether activations are rounded to quantisation steps while the model runs.

    ONNX Runtime's optimisation does so where weights are dequantised for a matrix product, too.
    """
    return rounds(model) or any(node.op_type == "DequantizeLinear" for node in model_nodes(model))


def rounds(model: onnx.ModelProto) -> bool:
    """Whether an operator of the model rounds activations to steps.

    MatMulNBits does unless it is told to compute in floats. DynamicQuantizeLinear does not where
    nothing but the scale is used.
    """
    names = ("QLinear", "QGemm", "QAttention", "QMoE", "QOrdered", "QuantizeLinear")
    read = {name for node in model_nodes(model) for name in node.input}
    for body in model_bodies(model):
        read.update(v.name if isinstance(v, onnx.ValueInfoProto) else v for v in body.output)
    for node in model_nodes(model):
        if node.op_type == "MatMulNBits":
            if not any(a.name == "accuracy_level" and a.i == 1 for a in node.attribute):
                return True
        elif node.op_type == "DynamicQuantizeLinear":
            if node.output[0] in read:
                return True
        elif node.op_type.startswith((*names, "DynamicQuantize")) or "Integer" in node.op_type:
            return True
    return False


def _stored(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for body in model_bodies(model):
        if isinstance(body, onnx.GraphProto):
            yield from body.initializer
        for node in body.node:
            yield from (a.t for a in node.attribute if a.HasField("t"))


def _cap(model: onnx.ModelProto, quantised: bool) -> float | None:
    """The cap for every float output, or None when each output's own type decides."""
    if quantised:
        return QUANTISED_CAP
    types = {
        value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    }
    types |= {tensor.data_type for tensor in _stored(model)}
    types |= {
        attribute.i
        for node in model_nodes(model)
        for attribute in node.attribute
        if node.op_type == "Cast" and attribute.name == "to"
    }
    if TensorProto.BFLOAT16 in types:
        return CAP["bfloat16"]
    return CAP["float16"] if TensorProto.FLOAT16 in types else None


def _perturbed(
    feed: Feed, index: int, quantised: bool, fixed: Collection[str] = ()
) -> dict[str, Array]:
    """The feed with its float arrays, but those ``fixed``, moved by up to a few units in the last
    place."""
    rng = np.random.default_rng(index)
    moved = dict(feed)
    for name, array in feed.items():
        if name in fixed or not is_float(array):
            continue
        step = _ULPS * epsilon(array.dtype)
        if quantised:
            step = max(step, 2.0**-10)
        noise = rng.uniform(-step, step, array.shape)
        moved[name] = np.asarray(array.astype(np.float64) * (1 + noise)).astype(array.dtype)
    return moved


def _noise(wanted: Array, other: Array | None) -> _Noise:
    none = _Noise(0.0, np.zeros(wanted.shape, np.bool_))
    if other is None:
        return none
    if other.shape != wanted.shape:  # the noise decides the shape: it may take all of the cap
        return _Noise(np.inf, none.changed)
    return _Noise(float(differences(wanted, other).max(initial=0.0)), ~same(wanted, other))


def _shared(
    outputs: Sequence[Mapping[str, Array]], noises: Sequence[Mapping[str, _Noise]]
) -> dict[str, dict[int, float]]:
    """The largest error of the noise by output and feed, that of other feeds taken into account."""
    shared: dict[str, dict[int, float]] = {}
    for name in dict.fromkeys(name for entry in outputs for name in entry):
        own = {i: noises[i][name].error for i, entry in enumerate(outputs) if name in entry}
        scales = {i: _scale(outputs[i][name]) for i in own}
        seen = [(e, e / scales[i] if scales[i] else 0.0) for i, e in own.items() if np.isfinite(e)]
        shared[name] = {
            i: max([error, *(min(e, max(scales[i] * share, near)) for e, share in seen)])
            for i, error in own.items()
            for near in [_near_one(outputs[i][name])]
        }
    return shared


def _scale(array: Array, counted: Bools | None = None) -> float:
    """The largest absolute value of the finite elements, or of those that are counted."""
    if array.dtype.kind in "OUSb":
        return 0.0
    inside = finite(array) if counted is None else counted
    return float(np.abs(wide(array)[inside]).max(initial=0.0))


def _near_one(array: Array) -> float:
    """A few units in the last place of 1 in the array's type."""
    return _ULPS * epsilon(array.dtype) if is_float(array) else 0.0


def _judge(
    wanted: Array,
    got: Array,
    noise: _Noise,
    cap: float | None,
    quantised: bool,
    operand: bool = False,
    perturbed: bool = False,
) -> Run:
    """One output held to its tolerance; ``perturbed``: the noise is all that can be measured."""
    numeric = wanted.dtype.kind not in "OUSb"
    counted = finite(wanted)
    if operand and got.shape == wanted.shape and not (equal := same(wanted, got)).all():
        counted = counted & ~equal
        moving = counted & noise.changed
        counted = counted if perturbed and not moving.any() else moving
    scale = _scale(wanted, counted)
    unit = max(scale, float(np.finfo(np.float64).tiny))
    blank = Run("", "", "", np.inf, scale, np.inf, noise.error / unit, 0.0, False)
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return blank
    errors = differences(wanted, got)
    if operand and is_float(wanted):  # the last places of a large number are its own matter
        own = _ULPS * epsilon(wanted.dtype) * np.abs(np.where(finite(wanted), wide(wanted), 0.0))
        errors = np.where(errors <= own, 0.0, errors)
    if not is_float(wanted) and not (quantised and numeric):
        errors = np.where(noise.changed, 0.0, errors)
        worst = float(errors.max(initial=0.0))
        return replace(blank, error=worst, relative=worst / unit if worst else 0.0, ok=not worst)
    precision = wanted.dtype.name
    base = BASE.get(precision, 0.0)
    limit = (
        cap if cap is not None else CAP.get(precision, QUANTISED_CAP if is_float(wanted) else 0.0)
    )
    if is_float(wanted):
        limit = max(limit, _near_one(wanted) / unit)
    tolerance = max(base, min(4 * noise.error / unit, limit))
    worst = float(errors.max(initial=0.0))
    relative = worst / unit
    ok = relative <= tolerance
    if quantised and errors.size:
        # Too few elements have no mean to speak of: one flipped step may be all there is.
        mean = float(errors.mean()) / unit
        ok = ok and (mean <= tolerance / 5 or errors.size < 5 or mean <= base)
    return replace(blank, error=worst, relative=relative, tolerance=tolerance, ok=ok)


def _is_constant(outputs: Sequence[Array]) -> bool:
    first = outputs[0]
    return (
        len(outputs) > 1
        and first.size > 0
        and all(
            other.shape == first.shape and bool(same(first, other).all()) for other in outputs[1:]
        )
    )


def named(what: str, action: Callable[..., Any], *operands: Any, **options: Any) -> Any:
    """Call ``action`` and say in its errors which model, or which feed, they are about."""
    try:
        return action(*operands, **options)
    except CertificateError as error:
        raise CertificateError(f"{what}: {error}") from None
