"""Indices of several axes, column by column, against what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import secateur
from secateur.ir.io import to_proto

from . import graphs_meshes
from .graphs import GRAPHS, Array, feeds
from .pruning_checks import analysis, at_random, constants, dims, run

NAMES = [name for name, make in vars(graphs_meshes).items() if name in GRAPHS and callable(make)]
NODES = ("GatherND", "ScatterND")


def indices(model: onnx.ModelProto, name: str, size: int) -> Array:
    """What the only node with tuples of indices is given; its data's shape fits no promise."""
    node = next(n for n in model.graph.node if n.op_type in NODES)
    stored = constants(model).get(node.input[1])
    if stored is not None:
        found: Array = onnx.numpy_helper.to_array(stored)
        return found
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.add(name=node.input[1]).type.tensor_type.elem_type = onnx.TensorProto.INT64
    feed = feeds(model, seed=size, **dims(name, size))
    given: Array = run(shown, feed)[node.input[1]]
    return given


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_columns_say_what_the_indices_are(name: str, size: int) -> None:
    found = analysis(name)
    (site,) = (site for site in found.sites if site.node.op_type in NODES)
    array = indices(GRAPHS[name](), name, size)
    columns = site.columns(1, 0)
    assert len(columns) == array.shape[-1]
    for place, column in enumerate(columns):
        numbers = array[..., place]
        for axis in set(range(numbers.ndim)) - column.axes:
            assert not np.diff(numbers, axis=axis).any()
        if column.fixed is not None:
            assert (numbers == column.fixed).all()
        if column.counts >= 0:
            counted = np.arange(numbers.shape[column.counts])
            assert (np.moveaxis(numbers, column.counts, -1) == counted).all()


def test_lists_of_a_mesh_are_told_apart() -> None:
    """Batch and heads count their axes, positions of queries start at 1."""
    (site,) = (s for s in analysis("written_tokens").sites if s.node.op_type == "ScatterND")
    batch, heads, tokens, places = site.columns(1, 0)
    assert (batch.counts, batch.fixed) == (0, None)
    assert (heads.counts, places.counts) == (1, 3)
    assert tokens.computed and tokens.axes == {2}
    assert tokens.source == "l2"  # what was spread, not the mesh


@pytest.mark.parametrize("name", ["written_tokens", "written_folded", "written_wide"])
def test_a_pruned_mesh_is_made_of_short_lists(name: str) -> None:
    """Nothing of the old mesh is left, and the last axis, taken whole, needs no list."""
    found = analysis(name)
    plan = secateur.Plan(found, at_random(found, 0.5, 0))
    pruned = to_proto(secateur.rewrite(plan).model)
    assert not {"e0", "u0", "at"} & {n.output[0] for n in pruned.graph.node}
    before, after = (indices(m, name, 3) for m in (GRAPHS[name](), pruned))
    assert after.shape[-1] == before.shape[-1] - 1
    assert after.ndim == before.ndim - 1


def test_a_stored_mesh_shrinks() -> None:
    """Rows from 1 on are taken of what is left of the channels."""
    found = analysis("written_stored")
    plan = secateur.Plan(found, at_random(found, 0.5, 0))
    places = indices(to_proto(secateur.rewrite(plan).model), "written_stored", 2)
    assert places.shape == (4, 7, 2)
    assert (places == np.moveaxis(np.mgrid[0:4, 1:8], 0, -1)).all()
