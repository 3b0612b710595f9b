"""Whether the operands of a node fit each other, for operators that ONNX's inference lets pass.

A check sees one node and the sizes of its operands and results, None where one is unknown, and
yields what is wrong and the numbers that show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import onnx_ir as oir

from .constants import constant_tensor

INTEGERS = (oir.DataType.INT32, oir.DataType.INT64)
_VECTOR_LIMIT = 1024

Dims = tuple["int | None", ...]
Shapes = Callable[["oir.Value | None"], "Dims | None"]
Finding = tuple[str, str]  # what is wrong, and the numbers


def known_dims(shape: oir.ShapeProtocol | None) -> Dims | None:
    """The sizes of a shape, None where one is symbolic or unknown."""
    if shape is None:
        return None
    return tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in shape)


def agree(first: Sequence[int | None], second: Sequence[int | None]) -> bool:
    """Whether both may be the sizes of the same tensor."""
    return len(first) == len(second) and all(
        a is None or b is None or a == b for a, b in zip(first, second, strict=True)
    )


def dims_text(dims: Sequence[int | None]) -> str:
    """Sizes as a message shows them, ``2x?x8``."""
    return "x".join("?" if dim is None else str(dim) for dim in dims) or "scalar"


def check_sizes(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
    """What is wrong with the sizes of one node's operands, and the numbers; unknown sizes fit."""
    check = _CHECKS.get(node.op_type)
    if not node.domain and check is not None:
        yield from check(node, shapes)


def _operand(node: oir.Node, index: int) -> oir.Value | None:
    return node.inputs[index] if 0 <= index < len(node.inputs) else None


def _result(node: oir.Node, shapes: Shapes, index: int = 0) -> Dims | None:
    return shapes(node.outputs[index]) if index < len(node.outputs) else None


def _differ(first: int | None, second: int | None, what: str) -> Iterator[Finding]:
    if first is not None and second is not None and first != second:
        yield what, f"{first}, {second}"


def _convolution(weight: int, bias: int) -> Callable[[oir.Node, Shapes], Iterator[Finding]]:
    def check(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
        w = shapes(_operand(node, weight))
        if w is None or len(w) < 2:
            return
        group = node.attributes.get_int("group", 1)
        transposed = node.op_type == "ConvTranspose"
        per_group = w[0] if transposed else w[1]
        inputs = per_group if transposed or per_group is None else per_group * group
        outputs = w[0]
        if transposed:
            outputs = None if w[1] is None else w[1] * group
        grouped = w[0]
        if group < 1 or (grouped is not None and grouped % group):
            yield "the weight's first axis is no multiple of group", f"{grouped}, {group}"
        x, b, y = shapes(_operand(node, 0)), shapes(_operand(node, bias)), _result(node, shapes)
        if x is not None and len(x) > 1:
            yield from _differ(x[1], inputs, "input channels differ from the weight's")
        if b is not None and len(b) == 1:
            yield from _differ(b[0], outputs, "the bias differs from the output channels")
        if y is not None and len(y) > 1:
            yield from _differ(y[1], outputs, "output channels differ from the weight's")
        kernel = node.attributes.get_ints("kernel_shape")
        if kernel is not None and not agree(tuple(kernel), w[2:]):
            yield (
                "kernel_shape differs from the weight's",
                f"{dims_text(kernel)}, {dims_text(w[2:])}",
            )

    return check


def _gemm(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
    a, b, c = (shapes(_operand(node, index)) for index in range(3))
    turned = [bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB")]
    a = a[::-1] if a and turned[0] else a
    b = b[::-1] if b and turned[1] else b
    if a and b and len(a) == len(b) == 2:
        yield from _differ(a[1], b[0], "inner dimensions differ")
    result = (a[0] if a else None, b[1] if b and len(b) == 2 else None)
    for axis, dim in enumerate(reversed(c or ())):
        if dim != 1 and axis < 2:
            yield from _differ(dim, result[1 - axis], "C does not broadcast to the product")


def _matmul(second: int) -> Callable[[oir.Node, Shapes], Iterator[Finding]]:
    def check(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
        a, b = shapes(_operand(node, 0)), shapes(_operand(node, second))
        if a and b:
            yield from _differ(a[-1], b[-2] if len(b) > 1 else b[0], "inner dimensions differ")

    return check


def _per_channel(*vectors: int) -> Callable[[oir.Node, Shapes], Iterator[Finding]]:
    def check(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
        x = shapes(_operand(node, 0))
        for index in vectors:
            vector = shapes(_operand(node, index))
            if x is not None and len(x) > 1 and vector is not None and len(vector) == 1:
                what = f"operand {index} differs from the input's channels"
                yield from _differ(vector[0], x[1], what)

    return check


def _layer_normalization(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
    x = shapes(_operand(node, 0))
    for index in (1, 2):
        vector = shapes(_operand(node, index))
        if not x or vector is None or len(vector) > len(x):
            continue
        for mine, theirs in zip(vector[::-1], x[::-1], strict=False):
            if mine != 1:
                yield from _differ(mine, theirs, f"operand {index} differs from the input")


def _recurrent(gates: int) -> Callable[[oir.Node, Shapes], Iterator[Finding]]:
    def check(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
        x, w, r, b = (shapes(_operand(node, index)) for index in range(4))
        hidden = node.attributes.get_int("hidden_size", None)
        if not w or not r or len(w) != 3 or len(r) != 3:
            return
        hidden = r[2] if hidden is None else hidden
        rows = None if hidden is None else gates * hidden
        yield from _differ(r[2], hidden, "hidden_size differs from R")
        yield from _differ(w[1], rows, "rows of W differ from the gates")
        yield from _differ(r[1], rows, "rows of R differ from the gates")
        if x and len(x) == 3:
            yield from _differ(x[2], w[2], "input size differs from W")
        if b and len(b) == 2 and rows is not None:
            yield from _differ(b[1], 2 * rows, "B differs from the gates")

    return check


def _integers(value: oir.Value | None) -> list[int] | None:
    """The numbers of a small constant integer vector."""
    tensor = None if value is None else constant_tensor(value)
    if tensor is None or tensor.dtype not in INTEGERS or tensor.size > _VECTOR_LIMIT:
        return None
    return [int(number) for number in tensor.numpy().ravel()]


def _split(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
    x, axis = shapes(_operand(node, 0)), node.attributes.get_int("axis", 0)
    sizes = _integers(_operand(node, 1))
    attribute = node.attributes.get_ints("split")
    sizes = list(attribute) if attribute is not None else sizes
    if sizes is None:
        return
    yield from _differ(len(sizes), len(node.outputs), "split has another number of parts")
    if x is not None and -len(x) <= axis < len(x):
        yield from _differ(sum(sizes), x[axis], "split does not add up to the axis")


def _reshape(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
    x, target = shapes(_operand(node, 0)), _integers(_operand(node, 1))
    if x is None or target is None:
        return
    dims: list[int | None] = list(target)
    if not node.attributes.get_int("allowzero", 0):
        if any(dim == 0 and axis >= len(x) for axis, dim in enumerate(target)):
            yield "copies an axis that the input does not have", f"{target}"
            return
        dims = [x[axis] if dim == 0 else dim for axis, dim in enumerate(target)]
    if None in x or None in dims:
        return
    count = math.prod(dim for dim in x if dim is not None)
    known = math.prod(dim for dim in dims if dim is not None and dim != -1)
    if count != known if -1 not in dims else (known == 0 or count % known):
        yield "the target has another number of elements", f"{dims_text(x)} to {target}"


def _concat(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
    axis = node.attributes.get_int("axis", 1)
    known = [dims for dims in map(shapes, node.inputs) if dims is not None]
    if not known:
        return
    rank = len(known[0])
    if any(len(dims) != rank for dims in known) or not -rank <= axis < rank:
        yield "operands have different ranks or no such axis", f"axis {axis}"
        return
    for dims in known[1:]:
        for index in set(range(rank)) - {axis % rank}:
            yield from _differ(dims[index], known[0][index], "operands differ off the axis")
    y = _result(node, shapes)
    parts = [dims[axis] for dims in known]
    if y is not None and len(y) == rank and len(known) == len(node.inputs) and None not in parts:
        total = sum(part for part in parts if part is not None)
        yield from _differ(total, y[axis], "the output differs from the sum of the operands")


_CHECKS: dict[str, Callable[[oir.Node, Shapes], Iterator[Finding]]] = {
    "Conv": _convolution(1, 2),
    "ConvTranspose": _convolution(1, 2),
    "ConvInteger": _convolution(1, -1),
    "QLinearConv": _convolution(3, 8),
    "DeformConv": _convolution(1, 3),
    "Gemm": _gemm,
    "MatMul": _matmul(1),
    "MatMulInteger": _matmul(1),
    "QLinearMatMul": _matmul(3),
    "BatchNormalization": _per_channel(1, 2, 3, 4),
    "InstanceNormalization": _per_channel(1, 2),
    "LayerNormalization": _layer_normalization,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    "Split": _split,
    "Reshape": _reshape,
    "Concat": _concat,
}
