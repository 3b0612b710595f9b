"""Types with maps, which onnx-ir does not know: set aside on reading, put back on writing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import onnx
import onnx_ir as oir

from .graphs import own_values

_TYPE = "secateur.map_type"

Body: TypeAlias = "onnx.GraphProto | onnx.FunctionProto"


def map_type(value: oir.Value) -> onnx.TypeProto | None:
    """The type of a value that holds maps; None for any other."""
    held: bytes | None = value.meta.get(_TYPE)
    return None if held is None else onnx.TypeProto.FromString(held)


def take_maps(body: Body) -> dict[str, bytes]:
    """Takes the types of values that hold maps out of a proto; returns them by name."""
    aside: dict[str, bytes] = {}
    for info in _infos(body):
        kind = info.type
        while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
            kind = getattr(kind, kind.WhichOneof("value")).elem_type
        if kind.HasField("map_type"):
            aside[info.name] = info.type.SerializeToString(deterministic=True)
            info.ClearField("type")
    return aside


def give_maps(graph: oir.Graph, aside: dict[str, bytes]) -> None:
    """Lets the values of a graph remember what `take_maps` returned."""
    for value in own_values(graph) if aside else ():
        if value.name in aside:
            value.meta[_TYPE] = aside[value.name]


def restore_maps(graph: oir.Graph, body: Body) -> None:
    """Puts the types back into the proto of a graph."""
    held = {value.name: value.meta[_TYPE] for value in own_values(graph) if _TYPE in value.meta}
    for info in _infos(body) if held else ():
        if info.name in held:
            info.type.ParseFromString(held[info.name])


def _infos(body: Body) -> Iterator[onnx.ValueInfoProto]:
    yield from body.value_info
    if isinstance(body, onnx.GraphProto):
        yield from (*body.input, *body.output)
