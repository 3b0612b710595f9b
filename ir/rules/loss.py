"""Losses: the class axis is looked up by number; the others are averaged, summed or pass."""

from __future__ import annotations

from .base import Operand, Site, rule

_CLASSES = "classes are looked up by number"


@rule("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss", family="loss", exactness="depends")
def loss(site: Site) -> None:
    """X [N, C, d1, ...], labels [N, d1, ...], weights [C] -> a number or [N, d1, ...]; the second
    output, the logarithms of the softmax, has the shape of X."""
    x, labels, logarithms = site.x, site.inputs[1], site.output(1)
    assert labels is not None
    site.pin(x.axis(1), _CLASSES)
    site.pin_all(_CLASSES, site.inputs[2:])
    if logarithms is not None:
        site.link_axes(x, logarithms)
    for index in range(labels.rank):
        site.link(labels.axis(index), x.axis(index + (index > 0)))
        _end(site, x, index)


def _end(site: Site, x: Operand, index: int) -> None:
    """What becomes of axis ``index`` of the labels: a sum of losses that are zero where X is zero
    is exact, while a softmax of zeros costs something and a mean counts its items."""
    reduction = site.string("reduction", "mean")
    own = index + (index > 0)
    if reduction == "none":
        site.link(x.axis(own), site.y.axis(index))
    elif reduction == "sum" and site.node.op_type == "NegativeLogLikelihoodLoss":
        site.sink(0, own)
    else:
        outputs = [] if site.output(1) is None else [(1, own)]
        site.inexact([(0, own), (1, index)], outputs)
