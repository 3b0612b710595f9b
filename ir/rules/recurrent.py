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

DynamicQuantizeLSTM rounds x and, at every step, h to steps that span their extremes and zero. What
is zero widens no range: the inputs that make a unit are silenced there, so that its gates and its
cell state meet zeros only, and h is zero wherever tanh, or what stands for it, is zero at zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .base import Site, rule
from .factors import Run, link_factor
from .quantization import MICROSOFT

if TYPE_CHECKING:
    from ..restated import Restated

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}
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
_ZERO_AT_ZERO = frozenset("elu leakyrelu relu scaledtanh softsign tanh thresholdedrelu".split())


def _restate_hidden_size(node: Restated) -> None:
    node.set_int("hidden_size", node.new_size(2, 1 if node.domain == MICROSOFT else 2))


@rule("LSTM", "GRU", "RNN", family="recurrent", restate=_restate_hidden_size, all_outputs=True)
def recurrent(site: Site) -> None:
    """X [T, B, I], W [D, g*H, I], R [D, g*H, H], bias [D, 2*g*H], lengths [B], states [D, B, H]
    and peepholes [D, 3*H] -> Y [T, D, B, H] and states; ``layout`` 1 has B first."""
    batch_first = site.integer("layout", 0) == 1
    x, y, state = ("BTI", "BTDH", "BDH") if batch_first else ("TBI", "TDBH", "DBH")
    inputs = (x, "DGI", "DGH", "Db", "B", state, state, "DP")
    found = _couple(site, inputs, (y, state, state))
    for axis in found["B"]:
        site.link(found["B"][0], axis)
    site.contract((0, 2), (1, 2))
    site.sink(2, 2)


@rule(
    "DynamicQuantizeLSTM",
    domain=MICROSOFT,
    family="quantisation",
    restate=_restate_hidden_size,
    all_outputs=True,
)
def dynamic_quantize_lstm(site: Site) -> None:
    """As LSTM, with W [D, I, 4*H] and R [D, H, 4*H] quantised: a scale and a zero point for every
    direction [D], or for every column [D, 4*H]."""
    inputs = ["TBI", "DIG", "DHG", "Db", "B", "DBH", "DBH", "DP"]
    inputs += ["D" if o is None or o.rank < 2 else "DG" for o in site.inputs[8:]]
    found = _couple(site, inputs, ("TDBH", "DBH", "DBH"))
    for axis in found["B"]:
        site.pin(axis, "a batch whose extremes set the steps of a quantised recurrent operator")
    site.quantised(1, 2)
    site.link(site.x.axis(2), found["I"][1])
    site.sink(0, 2)
    site.role("consumer", found["I"][1])
    for number in (1, 2, 3, 5, 6, 7):
        if site.input(number) is not None:
            site.sink(number, len(inputs[number]) - 1)
    for number, activation in enumerate(_activations(site)):
        if number % 3 and activation.lower() not in _ZERO_AT_ZERO:
            reason = f"a unit of zeros does not stay zero behind {activation}"
            site.pin(site.inputs[2].axis(1), reason)  # type: ignore[union-attr]


def _couple(site: Site, inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, list[int]]:
    """States what all recurrent operators have in common, and returns the axes by letter: D
    directions, T steps, B samples, I features, H units, G gates, b biases and P peepholes."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for operands, words in ((site.inputs, inputs), (site.outputs, outputs)):
        for operand, word in zip(operands, words, strict=False):
            for axis, name in zip(operand.axes, word, strict=True) if operand is not None else ():
                found[name].append(axis)
    for name, reason in _PINNED.items():
        for axis in found[name]:
            site.pin(axis, reason)
    for number in (1, 2):
        weight = site.inputs[number]
        assert weight is not None
        site.role("producer", weight.axis(inputs[number].index("G")))
        site.macs(found["T"][0], found["B"][0], *weight.axes)
    recurrence = site.inputs[2]
    assert recurrence is not None
    units = inputs[2].index("H")
    site.role("consumer", recurrence.axis(units))
    # Factors: 0 the half of the bias, 1 the gate, 2 the peephole, 3 the unit.
    sizes = (2, _GATES[site.node.op_type], 3, recurrence.shape[units])
    runs = [Run(axis, factors) for name, factors in _RUNS.items() for axis in found[name]]
    link_factor(site, runs, 3, sizes)
    for activation in _activations(site):
        if activation.lower() not in _ELEMENTWISE:
            reason = f"not known to work on every unit alone: {activation}"
            site.pin(recurrence.axis(units), reason)
    return found


def _activations(site: Site) -> list[str]:
    """The names of the activations where they are given."""
    given = site.node.attributes.get("activations")
    return [] if given is None else list(given.as_strings())
