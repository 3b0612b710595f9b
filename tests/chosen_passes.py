"""Passes whose behaviour a test chooses, and a small model to run them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as oir
from onnx import numpy_helper, parser

from secateur.ir.io import load_model, to_proto
from secateur.passes.base import Contract, Pass, PassContext, PassResult

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x) => (float[N,4] y) {
    unused = Neg (x)
    twice = Add (w, w)
    y = Mul (x, twice)
}
"""


def make_model() -> oir.Model:
    proto = parser.parse_model(TEXT)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    onnx.checker.check_model(proto)
    return load_model(proto)


def bytes_of(model: oir.Model) -> bytes:
    data: bytes = to_proto(model).SerializeToString(deterministic=True)
    return data


Edit = Callable[[oir.Model], None]


@dataclass(frozen=True)
class Edited(Pass):
    """A pass whose behaviour the test chooses."""

    name: ClassVar[str] = "edited"
    contract: ClassVar[Contract] = Contract.PRESERVES
    summary: ClassVar[str] = "for tests"

    edit: Edit
    statistics: tuple[tuple[str, float], ...] = ()
    modified: bool = True
    certificate: object = None

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        self.edit(model)
        return PassResult(model, self.modified, dict(self.statistics), certificate=self.certificate)


class Masked(Edited):
    name: ClassVar[str] = "masked"
    contract: ClassVar[Contract] = Contract.MASKS


class Approximate(Edited):
    name: ClassVar[str] = "approximate"
    contract: ClassVar[Contract] = Contract.APPROXIMATES


@dataclass(frozen=True)
class Verdict:
    ok: bool

    def describe(self) -> str:
        return "outputs differ\nby much"


def nothing(model: oir.Model) -> None:
    pass


def scale_weight(model: oir.Model) -> None:
    weight = model.graph.initializers["w"]
    assert weight.const_value is not None
    weight.const_value = oir.tensor(weight.const_value.numpy() * np.float32(1.01), name="w")


def crash(model: oir.Model) -> None:
    model.graph.remove(model.graph[0])
    raise ZeroDivisionError("first line\nsecond line")


@dataclass(frozen=True)
class Fails(Pass):
    name: ClassVar[str] = "fails"
    contract: ClassVar[Contract] = Contract.PRESERVES
    summary: ClassVar[str] = "for tests"

    text: str = ""

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        crash(model)
        return PassResult(model, True)
