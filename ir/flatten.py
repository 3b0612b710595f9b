"""A model in which a name says all: local functions inlined, no name used twice.

Analysis and reports name values, so every name must mean one value in the main graph and in all
subgraphs. `flatten` gives a model like that:

- a call of a local function becomes the function's nodes, named ``<call>/<name>``; a constant of
  its body becomes one initializer for all calls, named ``<function>/<name>``;
- a name that a subgraph shares with another graph gets a number.

`restore` takes both back in a rewritten copy as far as pruning allows: a call becomes a call again
where its body came through unchanged or changed as in other calls, which give the function its new
body, and subgraphs get their names back.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as oir

from .calls import put_calls_back
from .constants import constants, set_constant
from .graphs import own_values
from .inlining import Inliner
from .renaming import restore_names, separate_names, shares_names


def flatten(model: oir.Model) -> oir.Model:
    """The model itself if it is flat, else a flat copy that shares its weights.

    A call stays, and is then an unknown operator, when it passes a graph, when the function calls
    itself, or when its opset gives one of its operators another meaning.
    """
    calls = model.functions and any(
        node.op_identifier() in model.functions for node in model.graph.all_nodes()
    )
    if not calls and not shares_names(model.graph):
        return model
    flat = model.clone()
    flat.meta.update(model.meta)
    Inliner(flat).run()
    separate_names(flat.graph)
    return flat


def restore(model: oir.Model, values: Mapping[str, oir.Value]) -> list[str]:
    """Undoes what `flatten` did in a rewritten copy of a flat model; returns what it could not.

    ``values`` are the copy's values by the names of the flat model.
    """
    notes = put_calls_back(model, values)
    restore_names(model.graph)
    return notes


def with_constants(model: oir.Model, tensors: Mapping[str, oir.TensorProtocol]) -> oir.Model:
    """The model with these tensors for its constants, which have their names in the flat form: a
    copy, or the model itself, changed, if it is flat."""
    flat = flatten(model)
    changed = model if flat is model else flat.clone()  # calls come back from a copy
    changed.meta.update(model.meta)
    for value, _ in list(constants(changed.graph)):
        if (name := str(value.name)) in tensors:
            set_constant(value, tensors[name])
    if changed is not model:
        parts = (changed.graph, *changed.graph.subgraphs())
        restore(changed, {str(value.name): value for part in parts for value in own_values(part)})
    return changed
