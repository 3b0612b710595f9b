"""Elementwise operators: the same coordinate of every operand, with numpy broadcasting."""

from __future__ import annotations

from .base import Operand, Site, rule
from .sums import inputs_sum

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitCast BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf "
    "Exp Floor Gelu HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not "
    "Reciprocal RegexFullMatch Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign "
    "Sqrt Swish Tan Tanh ThresholdedRelu"
).split()

NARY = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less "
    "LessOrEqual Max Mean Min Mod Mul Or PRelu Pow StringConcat Sub Sum SwiGLU Where Xor"
).split()


@rule("Add", "Sum", family="elementwise", sums=inputs_sum)
@rule(*UNARY, *NARY, family="elementwise")
def broadcast(site: Site) -> None:
    """Axes aligned from the end; a size-1 axis against a longer one couples nothing."""
    for operand in site.inputs:
        if operand is not None:
            align(site, operand, site.y)


def align(site: Site, operand: Operand, output: Operand) -> None:
    """Links an operand with the output that it is broadcast to."""
    offset = output.rank - operand.rank
    for index, size in enumerate(operand.shape):
        axis, target = operand.axis(index), output.axis(index + offset)
        if size == output.shape[index + offset]:
            site.link(axis, target)
        else:
            site.pin(axis, "broadcast along this axis")


@rule("CastLike", family="elementwise")
def cast_like(site: Site) -> None:
    """Only the type of the second operand matters."""
    site.link_axes(site.x, site.y)


@rule("Dropout", family="elementwise")
def dropout(site: Site) -> None:
    """The identity in inference; a training-mode dropout is random and pins."""
    training = site.input(2)
    if training is not None:
        value = site.value(2)
        if value is None or bool(value):
            site.pin_all("random in training mode")
            return
    site.link_axes(site.x, site.y)
    mask = site.output(1)
    if mask is not None:
        site.link_axes(site.x, mask)
