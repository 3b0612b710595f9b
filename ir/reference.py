"""What the masked original must do: sinks to multiply by zero, inexact nodes to compact.

The points are data (see `secateur.ir.masks`); building and running the masked original is the
runtime's business and shares no code with the rewriting.
"""

from __future__ import annotations

import numpy as np

from .analysis import Analysis
from .coupling import Flags
from .masks import Compaction, Mask
from .naming import output_name


def reference_points(analysis: Analysis, removed: Flags) -> tuple[list[Mask], list[Compaction]]:
    """Masks and compactions that stand for the units flagged in ``removed`` (bool[unit_count])."""
    masks, compactions = [], []
    for sink in analysis.statements.sinks:
        gone = _gone(analysis, sink.axis, removed)
        if gone:
            name = output_name(analysis.sites[sink.site].node)
            masks.append(Mask(name, sink.input, sink.index, gone))
    for inexact in analysis.statements.inexact:
        gone = _gone(analysis, inexact.axis, removed)
        if gone:
            size = analysis.coupling.sizes[inexact.axis]
            name = output_name(analysis.sites[inexact.site].node)
            compactions.append(Compaction(name, inexact.inputs, inexact.outputs, gone, size))
    return masks, compactions


def _gone(analysis: Analysis, axis: int, removed: Flags) -> tuple[int, ...]:
    return tuple(np.flatnonzero(~analysis.keep(axis, removed)).tolist())
