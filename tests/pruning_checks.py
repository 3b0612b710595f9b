"""Prunes models, and checks them against the original with the removed slices set to zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

import secateur
from secateur.ir.analysis import Analysis
from secateur.ir.coupling import Flags
from secateur.ir.flatten import flatten
from secateur.ir.io import load_model, to_proto
from secateur.ir.reference import reference_points
from secateur.ir.rewrite import Rewritten
from secateur.ir.units import Group
from secateur.passes.proof import facts_types
from secateur.runtime.certificate import Certificate, certify

from .graph_builder import is_nested, subgraphs
from .graphs import GRAPHS, INFO, Array, feeds

RUNNABLE = [name for name, info in INFO.items() if info.runnable]
PLAIN = [name for name in RUNNABLE if not is_nested(GRAPHS[name]())]
"""Graphs of tensors and operators alone; `test_control_flow` looks into the others."""
SOME = ["residual_identity", "dense_concat", "channel_shuffle", "qdq", "weights_in_constants",
        "weights_as_inputs", "computed_attention", "swiglu_fused"]  # fmt: skip
Carrier = Literal["heads", "head-dim"]
CARRIERS: tuple[Carrier, Carrier] = ("heads", "head-dim")
Slices = Iterable[tuple[str, int, Iterable[int]]]


def dims(name: str, size: int = 2) -> dict[str, int]:
    return {dim: size + i for i, dim in enumerate(INFO[name].dims)}


@cache
def analysis(name: str, carrier: Carrier = "heads") -> Analysis:
    return secateur.analyze(GRAPHS[name](), dims=dims(name), carrier=carrier)


def prunable(found: Analysis, inexact: bool = False) -> list[Group]:
    return [g for g in found.groups if len(g.units) > 1 and (g.exact or inexact)]


def at_random(found: Analysis, ratio: float, seed: int, inexact: bool = False) -> Flags:
    """A random share of the units of every group, at least one kept and one removed."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(found.unit_count, np.bool_)
    for group in prunable(found, inexact):
        count = len(group.units)
        gone = min(max(round(count * ratio), 1), count - 1)
        removed[rng.choice(group.units, gone, replace=False)] = True
    return removed


def certified(found: Analysis, pruned: onnx.ModelProto, removed: Flags) -> Certificate:
    """The certificate of a pruned model, held to the original without the units ``removed``."""
    masks, compactions = reference_points(found, removed)
    return certify(
        to_proto(found.model),
        pruned,
        masks,
        compactions,
        bindings=[facts.binding for facts in found.facts],
        types=facts_types(found.facts),
        threads=1,
    )


def run(model: onnx.ModelProto, feed: Mapping[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers, and Constant nodes by the name of their output, those of subgraphs too, and
    those of functions as they are called once inlined."""
    found: dict[str, onnx.TensorProto] = {}
    scopes = [(f"{f.name}/", part) for f in model.functions for part in (*subgraphs(f), f)]
    scopes += [("", graph) for graph in (*subgraphs(model.graph), model.graph)]
    for prefix, graph in scopes:
        if isinstance(graph, onnx.GraphProto):
            found.update({prefix + t.name: t for t in graph.initializer})
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    found[prefix + node.output[0]] = attribute.t
    return found


def zeroed(model: onnx.ModelProto, slices: Slices) -> onnx.ModelProto:
    """A copy of the model with slices of its constants set to zero."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    held = constants(copy)
    for name, axis, indices in slices:
        array = numpy_helper.to_array(held[name]).copy()
        if array.dtype == np.int64:
            continue  # indices: zero is another place
        array[(slice(None),) * axis + (list(indices),)] = 0
        held[name].CopyFrom(numpy_helper.from_array(array, held[name].name))
    return copy


def assert_same(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype
        tolerance = 4e-3 if array.dtype == np.float16 else 1e-5
        scale = float(np.abs(array.astype(np.float64)).max())
        np.testing.assert_allclose(got[name], array, rtol=0, atol=tolerance * scale, err_msg=name)


def check_model(name: str, model: onnx.ModelProto) -> None:
    if not INFO[name].deprecated:
        onnx.checker.check_model(model, full_check=True)


def check_interface(original: onnx.ModelProto, pruned: onnx.ModelProto) -> None:
    """Inputs and outputs as they were, symbolic dimensions among them."""
    held = {t.name for t in original.graph.initializer}
    assert [i.name for i in pruned.graph.input] == [i.name for i in original.graph.input]
    for before, after in zip(original.graph.input, pruned.graph.input, strict=True):
        assert before.name in held or before == after
    assert list(pruned.graph.output) == list(original.graph.output)


def check_pruned(
    name: str,
    rewritten: Rewritten,
    *,
    exact: bool,
    sizes: Iterable[int] = (2, 5),
    original: onnx.ModelProto | None = None,
) -> onnx.ModelProto:
    """Valid, same interface, and at two batch sizes the original with the slices zeroed."""
    original, pruned = original or GRAPHS[name](), to_proto(rewritten.model)
    check_model(name, pruned)
    check_interface(original, pruned)
    flat = to_proto(flatten(load_model(original)))  # so that names of slices are those of tensors
    replay = zeroed(flat, ((s.tensor, s.axis, s.indices) for s in rewritten.slices))
    for size in sizes:
        feed = feeds(original, seed=size, **dims(name, size))
        got, reference = run(pruned, feed), run(replay, feed)
        if exact:
            assert_same(got, reference)
        assert {k: (v.shape, v.dtype) for k, v in got.items()} == {
            k: (v.shape, v.dtype) for k, v in reference.items()
        }
    return pruned


def prune_random(
    name: str, ratio: float, seed: int, *, inexact: bool = False, carrier: Carrier = "heads"
) -> tuple[secateur.Plan, Rewritten]:
    found = analysis(name, carrier)
    plan = secateur.Plan(found, at_random(found, ratio, seed, inexact))
    rewritten = secateur.rewrite(plan)
    certificate = secateur.certify(plan, rewritten, threads=1, seed=seed)
    assert certificate.ok, certificate.describe()
    exact = not any(plan.removed[g.units].any() for g in found.groups if not g.exact)
    assert [note for note in certificate.notes if exact or "inexact groups" not in note] == []
    assert certificate.bindings == ((dims(name), {k: 2 * v for k, v in dims(name).items()}))
    if exact:
        assert certificate.replay is not None and certificate.replay["agrees"]
    check_pruned(name, rewritten, exact=exact)
    return plan, rewritten


def prune(source: Any, name: str = "", **options: Any) -> secateur.PruneResult:
    if name:
        options.setdefault("dims", dims(name))
    return secateur.prune(source, **{"bench": False, "threads": 1, **options})


def arrays(model: onnx.ModelProto) -> dict[str, Array]:
    return {name: numpy_helper.to_array(t) for name, t in constants(model).items()}


def saved(model: onnx.ModelProto, path: Path, **options: Any) -> Path:
    onnx.save(model, path, **options)
    return path
