"""LSTM, GRU and RNN: hidden units are one group across gates, states and directions.

With x_t of I features, state h_t of H units and g gates (4, 3 or 1), stacked in rows of W and R,

    a_t = x_t W' + h_{t-1} R' + b,   h_t, c_t = s(a_t, h_{t-1}, c_{t-1}, P)

where s works on every unit alone: gate k of unit j is coordinate k * H + j of every stacked axis,
and peepholes P, cell states, clipping and activations stay within the unit. Units meet in the two
products only. The second lies inside the operator, so what a removed unit would go on telling the
others is silenced where R contracts it: at the last axis of R, before any activation is applied
to the result. GRU multiplies h_{t-1} by its reset gate before (unit by unit) or after (row by row)
that product; the columns of R silence it in both forms. Both directions share each tensor and so
lose the same units.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from .base import Run, Site, link_factor, rule

if TYPE_CHECKING:
    from ..restated import Restated

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PINNED = {
    "D": "the directions of a recurrent operator",
    "T": "the sequence of a recurrent operator",
}
_RUNS = {"H": (3,), "G": (1, 3), "b": (0, 1, 3), "P": (2, 3)}
"""Axes that hold units, by letter: gates, both biases of them, peepholes."""
_ELEMENTWISE = frozenset(
    "affine elu hardsigmoid leakyrelu relu scaledtanh sigmoid softplus softsign tanh"
    " thresholdedrelu".split()
)


def _restate_hidden_size(node: Restated) -> None:
    node.set_int("hidden_size", node.new_size(2, 2))


@rule("LSTM", "GRU", "RNN", family="recurrent", restate=_restate_hidden_size, all_outputs=True)
def recurrent(site: Site) -> None:
    """X [T, B, I], W [D, g*H, I], R [D, g*H, H], bias [D, 2*g*H], lengths [B], states [D, B, H]
    and peepholes [D, 3*H] -> Y [T, D, B, H] and states; ``layout`` 1 has B first."""
    w, r = site.inputs[1], site.inputs[2]
    assert w is not None and r is not None
    batch_first = site.integer("layout", 0) == 1
    x, y, state = ("BTI", "BTDH", "BDH") if batch_first else ("TBI", "TDBH", "DBH")
    found: defaultdict[str, list[int]] = defaultdict(list)
    for operands, letters in (
        (site.inputs, (x, "DGI", "DGH", "Db", "B", state, state, "DP")),
        (site.outputs, (y, state, state)),
    ):
        for operand, names in zip(operands, letters, strict=False):
            for axis, name in zip(operand.axes, names, strict=True) if operand is not None else ():
                found[name].append(axis)
    for name, reason in _PINNED.items():
        for axis in found[name]:
            site.pin(axis, reason)
    for axis in found["B"]:
        site.link(found["B"][0], axis)

    site.contract((0, 2), (1, 2))
    site.sink(2, 2)
    site.role("consumer", r.axis(2))
    for weight in (w, r):
        site.role("producer", weight.axis(1))
        site.macs(found["T"][0], found["B"][0], *weight.axes)
    # Factors: 0 the half of the bias, 1 the gate, 2 the peephole, 3 the unit.
    sizes = (2, _GATES[site.node.op_type], 3, r.shape[2])
    runs = [Run(axis, factors) for name, factors in _RUNS.items() for axis in found[name]]
    link_factor(site, runs, 3, sizes)
    activations = site.node.attributes.get("activations")
    for activation in () if activations is None else activations.as_strings():
        if activation.lower() not in _ELEMENTWISE:
            site.pin(r.axis(2), f"not known to work on every unit alone: {activation}")
