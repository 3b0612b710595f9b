"""Running a model whose weights do not fit into memory: one stretch of its nodes after another.

The nodes, in the order of the graph, are cut into segments whose weights stay below a limit. Each
segment is a model of its own that reads its weights from their files; all feeds pass through it
before the next one is loaded, and only the values that later nodes read are kept.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from ..ir.errors import CertificateError
from .session import Array, Feed, make_session, run
from .widened import BFLOAT16, uses, widened, widened_feed

SEGMENT_BYTES = 2**28
"""Weights of one segment, unless a single node reads more."""


@dataclass(frozen=True)
class Segment:
    """Consecutive nodes; ``reads`` are values of earlier ones or of the feed, ``makes`` are those
    that later nodes, or the caller, read."""

    nodes: tuple[onnx.NodeProto, ...]
    weights: tuple[TensorProto, ...]
    reads: tuple[str, ...]
    makes: tuple[str, ...]


def cut_segments(model: onnx.ModelProto, limit: int = SEGMENT_BYTES) -> list[Segment]:
    """The main graph's nodes as segments with at most ``limit`` bytes of weights each."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    reads = [node_reads(node) for node in graph.node]
    stretches: list[list[int]] = [[]]
    held: set[str] = set()
    for k, names in enumerate(reads):
        held |= names & weights.keys()
        if stretches[-1] and sum(stored_bytes(weights[name]) for name in held) > limit:
            stretches.append([])
            held = names & weights.keys()
        stretches[-1].append(k)
    wanted = {value.name for value in graph.output}
    segments = []
    for stretch in reversed(stretches):
        nodes = [graph.node[k] for k in stretch]
        made = {name for node in nodes for name in node.output if name}
        read = set().union(*(reads[k] for k in stretch)) if stretch else set()
        segments.append(
            Segment(
                tuple(nodes),
                tuple(weights[name] for name in sorted(read & weights.keys())),
                tuple(sorted(read - made - weights.keys() - {""})),
                tuple(sorted(made & wanted)),
            )
        )
        wanted |= read
    return segments[::-1]


def run_segments(
    model: onnx.ModelProto,
    feeds: Sequence[Feed],
    *,
    threads: int = 0,
    optimize: bool = True,
    limit: int = SEGMENT_BYTES,
    kinds: Collection[int] = BFLOAT16,
) -> Iterator[dict[str, Array]]:
    """The outputs of ``model`` on every feed, as `session.run` gives them; float32 stands in for
    the element types ``kinds``.

    Raises CertificateError when a segment does not load or run, or when a value that passes from
    one to the next is not a tensor.
    """
    wide = uses(model, kinds)
    known = [widened_feed(feed, kinds) for feed in feeds]
    segments = cut_segments(model, limit)
    outputs = [value.name for value in model.graph.output]
    for number, segment in enumerate(segments):
        if not segment.makes:
            continue
        part = segment_model(model, segment, known[0])
        session = make_session(
            widened(part, kinds) if wide else part,
            threads=threads,
            optimize=optimize,
            prepack=False,
        )
        later = {name for part in segments[number + 1 :] for name in part.reads} | {*outputs}
        for values in known:
            made = run(session, {name: values[name] for name in segment.reads})
            if any(name not in made for name in segment.makes):
                raise CertificateError(
                    "the model is too large to be run at once, and a value in it that is no "
                    "tensor keeps it from being run in parts"
                )
            values.update(made)
            for name in values.keys() - later:
                del values[name]
        del session
    stored = {t.name: t for t in model.graph.initializer if t.name in outputs}
    for values in known:
        yield {
            name: values[name] if name in values else onnx.numpy_helper.to_array(stored[name])
            for name in outputs
        }


def segment_model(
    model: onnx.ModelProto, segment: Segment, values: Mapping[str, Array | list[Array]]
) -> onnx.ModelProto:
    """The segment as a model, whose inputs have the types of these values (lists: sequences).

    Raises CertificateError for values that are missing, or empty sequences.
    """
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    graph = part.graph
    graph.name = "segment"
    graph.node.extend(segment.nodes)
    graph.initializer.extend(segment.weights)
    for name in segment.reads:
        value = values.get(name)
        if value is None or (isinstance(value, list) and not value):
            raise CertificateError(f"no node before its reader computes {name!r}")
        if isinstance(value, list):
            kind = helper.np_dtype_to_tensor_dtype(value[0].dtype)
            graph.input.append(helper.make_tensor_sequence_value_info(name, kind, None))
        else:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, None))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in segment.makes)
    return part


def node_reads(node: onnx.NodeProto) -> set[str]:
    """The values that a node reads, and those that its subgraphs capture."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {v.name for v in (*graph.input, *graph.initializer)}
            own.update(name for inner in graph.node for name in inner.output)
            for inner in graph.node:
                names |= node_reads(inner) - own
            names |= {value.name for value in graph.output} - own
    return names


def living_nodes(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs depend on, in order."""
    read, kept = set(outputs), []
    for node in reversed(nodes):
        if read.intersection(node.output):
            kept.append(node)
            read |= node_reads(node)
    return kept[::-1]


def stored_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's data, in the message or in a file; strings count nothing."""
    if tensor.data_type == TensorProto.STRING:
        return 0
    width = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return int(math.prod(tensor.dims)) * width


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers of the main graph, in the message or in files."""
    return sum(map(stored_bytes, model.graph.initializer))
