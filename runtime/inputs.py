"""What a model takes: its symbolic dimensions, and random feeds that it can run on.

Random integers must be valid where they index something. Every input is followed forward
through operators that only move or shift its values, as ``scale * x + offset``, to the Gathers
it ends in: each bounds it by ``0 <= scale * x + offset < size``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..ir.errors import DataError, ModelError, UsageError
from .session import Array, one_line

Types: TypeAlias = "Mapping[str, tuple[int, tuple[int | str | None, ...]]]"
Shape: TypeAlias = "tuple[int | str | None, ...]"

# A constant larger than this is a weight: shape inference needs its shape, not its values.
_SMALL = 4096
# Calibration files larger than this, unpacked, are refused before anything is read.
CALIBRATION_LIMIT = 8 * 2**30
_MOVES = {
    *("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Slice", "Flatten"),
    *("Expand", "Tile", "Split", "Gather", "GatherElements", "GatherND", "Floor", "Round"),
}
_WORDS = ("a", "b", "pruning", "Zürich")


def fed_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must feed: initializers listed as inputs are left out."""
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in stored]


def input_shape(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | str, ...]]:
    """Element type and shape of an input; an unnamed dimension is called ``<input>.<axis>``.

    Raises ModelError for an input that is no tensor or whose rank is unknown.
    """
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"input {value.name!r} is not a tensor: it cannot be fed")
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise ModelError(f"input {value.name!r} has no shape: state at least its rank")
    dims: list[int | str] = []
    for axis, dim in enumerate(kind.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(dim.dim_value)
        else:
            dims.append(dim.dim_param or f"{value.name}.{axis}")
    return kind.elem_type, tuple(dims)


def input_dims(model: onnx.ModelProto) -> dict[str, list[tuple[str, int]]]:
    """Every symbolic dimension of the fed inputs, with the (input, axis) places that have it.

    Raises ModelError as `input_shape` does.
    """
    places: dict[str, list[tuple[str, int]]] = {}
    for value in fed_inputs(model):
        for axis, dim in enumerate(input_shape(value)[1]):
            if isinstance(dim, str):
                places.setdefault(dim, []).append((value.name, axis))
    return places


def value_types(model: onnx.ModelProto) -> dict[str, tuple[int, Shape]]:
    """Element type and shape of every tensor that ONNX shape inference reaches.

    An entry of a shape is a size, the name of a symbolic dimension, or None. Weights take part
    with their types only, so that models of any size are served.
    """
    shell = onnx.ModelProto(ir_version=model.ir_version)
    shell.opset_import.extend(model.opset_import)
    shell.functions.extend(model.functions)
    graph, source = shell.graph, model.graph
    graph.name = source.name
    for field in ("input", "output", "value_info"):
        getattr(graph, field).extend(getattr(source, field))
    types: dict[str, tuple[int, Shape]] = {}
    for tensor in source.initializer:
        types[tensor.name] = (tensor.data_type, tuple(tensor.dims))
        if math.prod(tensor.dims) <= _SMALL and tensor.data_location != TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
    for node in source.node:
        large = _constant_tensor(node)
        if large is not None and math.prod(large.dims) > _SMALL:
            types[node.output[0]] = (large.data_type, tuple(large.dims))
        else:
            graph.node.append(node)
    held = {value.name for value in (*graph.input, *graph.initializer)}
    for name, (element, shape) in types.items():
        if name not in held:
            graph.input.append(helper.make_tensor_value_info(name, element, shape))
    with contextlib.suppress(Exception):  # what it cannot infer, the model may state
        shell = onnx.shape_inference.infer_shapes(shell, data_prop=True)
    for value in _value_infos(shell.graph):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            dims: Shape = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
                for dim in kind.shape.dim
            )
            types.setdefault(value.name, (kind.elem_type, dims))
    return types


def _value_infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.input, *graph.output, *graph.value_info)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _value_infos(attribute.g)


def _constant_tensor(node: onnx.NodeProto) -> TensorProto | None:
    if node.op_type != "Constant":
        return None
    return next((item.t for item in node.attribute if item.name == "value"), None)


def random_feed(model: onnx.ModelProto, dims: Mapping[str, int], seed: int) -> dict[str, Array]:
    """A random feed with the symbolic dimensions bound to ``dims``; same seed, same feed.

    Floats are standard normal, 8-bit integers use their whole range (they are quantised data or
    pictures), other integers are valid indices where they index something and 0 or 1 elsewhere.
    Raises UsageError when a dimension is not bound, ModelError as `input_shape` does.
    """
    bounds = index_bounds(model, dims)
    feed: dict[str, Array] = {}
    for position, value in enumerate(fed_inputs(model)):
        element, shape = input_shape(value)
        sizes = _bound(value.name, shape, dims)
        rng = np.random.default_rng([seed, position])
        feed[value.name] = _random(rng, element, sizes, bounds.get(value.name), value.name)
    return feed


def _bound(name: str, shape: Iterable[int | str], dims: Mapping[str, int]) -> tuple[int, ...]:
    sizes = []
    for dim in shape:
        if isinstance(dim, str) and dim not in dims:
            raise UsageError(f"dimension {dim!r} of input {name!r} has no size: give it with --dim")
        sizes.append(dims[dim] if isinstance(dim, str) else dim)
    return tuple(sizes)


def _random(
    rng: np.random.Generator,
    element: int,
    sizes: tuple[int, ...],
    bounds: tuple[int, int] | None,
    name: str,
) -> Array:
    if element == TensorProto.STRING:
        return np.array(rng.choice(_WORDS, sizes), dtype=object)
    if element in (TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.UNDEFINED):
        raise ModelError(f"input {name!r} has an element type that cannot be fed")
    dtype = helper.tensor_dtype_to_np_dtype(element)
    if element == TensorProto.BOOL:
        return rng.integers(0, 2, sizes).astype(dtype)
    if bounds is not None:
        return rng.integers(bounds[0], max(bounds) + 1, sizes).astype(dtype)
    if element in (TensorProto.INT8, TensorProto.UINT8):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, int(limits.max) + 1, sizes).astype(dtype)
    if dtype.kind in "iu" or "int" in dtype.name:
        return rng.integers(0, 2, sizes).astype(dtype)
    return np.asarray(rng.standard_normal(sizes)).astype(dtype)


@dataclass(frozen=True)
class _Shifted:
    """Values ``scale * x + offset`` of input ``source``, offset between ``low`` and ``high``."""

    source: str
    scale: int = 1
    low: int = 0
    high: int = 0


def index_bounds(model: onnx.ModelProto, dims: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """The valid (lowest, highest) value of every input that ends up as an index."""
    types = value_types(model)
    traced = {value.name: [_Shifted(value.name)] for value in fed_inputs(model)}
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) <= _SMALL and tensor.data_location != TensorProto.EXTERNAL
    }
    bounds: dict[str, tuple[int, int]] = {}
    for node in _all_nodes(model.graph):
        tensor = _constant_tensor(node)
        if tensor is not None and math.prod(tensor.dims) <= _SMALL:
            constants[node.output[0]] = numpy_helper.to_array(tensor)
        for number, size in _indexed(node, types, dims, constants):
            for item in traced.get(node.input[number], ()):
                low, high = bounds.get(item.source, (0, 2**62))
                low = max(low, math.ceil(-item.low / item.scale))
                high = min(high, (size - 1 - item.high) // item.scale)
                bounds[item.source] = (low, high)
        moved = _moved(node, traced, constants)
        if moved:
            traced.update(dict.fromkeys(node.output, moved))
    return bounds


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes in order, those of subgraphs in front of the node that owns them."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g)
        yield node


def _moved(
    node: onnx.NodeProto, traced: Mapping[str, list[_Shifted]], constants: Mapping[str, Array]
) -> list[_Shifted]:
    """What the node's output holds of the inputs, when it only moves, joins or shifts values."""
    if not node.input:
        return []
    first = traced.get(node.input[0], [])
    if node.op_type in _MOVES:
        return first
    if node.op_type in ("Concat", "Where"):
        return [item for name in node.input for item in traced.get(name, ())]
    if node.op_type not in ("Add", "Sub", "Mul") or len(node.input) != 2:
        return []
    other = node.input[1]
    if not first and node.op_type != "Sub":
        first, other = traced.get(node.input[1], []), node.input[0]
    constant = constants.get(other)
    if not first or constant is None or constant.size == 0 or constant.dtype.kind not in "iuf":
        return []
    low, high = int(constant.min()), int(constant.max())
    if node.op_type == "Mul":
        if low != high or low <= 0:
            return []
        return [_Shifted(i.source, i.scale * low, i.low * low, i.high * low) for i in first]
    if node.op_type == "Sub":
        low, high = -high, -low
    return [_Shifted(i.source, i.scale, i.low + low, i.high + high) for i in first]


def _indexed(
    node: onnx.NodeProto, types: Types, dims: Mapping[str, int], constants: Mapping[str, Array]
) -> Iterator[tuple[int, int]]:
    """(input number, size of what it indexes) for every index operand of known range."""

    def size(number: int, axis: int) -> Iterator[int]:
        shape = types.get(node.input[number], (0, ()))[1] if number < len(node.input) else ()
        if -len(shape) <= axis < len(shape):
            found = shape[axis]
            found = dims.get(found) if isinstance(found, str) else found
            if found:
                yield found

    attributes = {item.name: item for item in node.attribute}

    def attribute(name: str) -> int:
        return attributes[name].i if name in attributes else 0

    op = node.op_type
    if op in ("Gather", "GatherElements", "ScatterElements", "Scatter"):
        yield from ((1, n) for n in size(0, attribute("axis")))
    elif op == "GatherBlockQuantized":
        yield from ((1, n) for n in size(0, attribute("gather_axis")))
    elif op in ("GatherND", "ScatterND"):
        batch = attribute("batch_dims")
        for depth in (d for d in size(1, -1) if d <= 8):
            yield from ((1, n) for axis in range(batch, batch + depth) for n in size(0, axis))
    elif op == "OneHot" and node.input[1] in constants:
        yield 0, int(constants[node.input[1]].max())
    elif op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"):
        yield from ((1, n) for n in size(0, 1))
    elif op == "EmbedLayerNormalization":
        for number, table in ((0, 2), (1, 4), (8, 3)):
            if number < len(node.input):
                yield from ((number, n) for n in size(table, 0))
    elif op == "RotaryEmbedding":
        number, table = (1, 2) if node.domain == "com.microsoft" else (3, 1)
        if number < len(node.input):
            yield from ((number, n) for n in size(table, 0))


def load_calibration(
    source: str | Path | Mapping[str, Array], model: onnx.ModelProto, dims: Mapping[str, int]
) -> dict[str, Array]:
    """Calibration arrays (an npz file or a mapping), checked against the inputs of ``model``.

    One array per fed input, under its name. Either every array has the rank of its input, and
    its first axis counts samples (a scalar input: one number for all), or every array has one
    axis more, and each step of the first axis is one whole feed. The other axes must have the
    input's static sizes and agree on the symbolic ones. Raises DataError for anything else:
    unreadable or oversized files, wrong names, types, sizes or sample counts, NaN, infinity.
    """
    names = {value.name for value in fed_inputs(model)}
    label = "calibration" if isinstance(source, Mapping) else str(source)
    if isinstance(source, Mapping):
        arrays = {name: np.asarray(array) for name, array in source.items()}
        _check_names(arrays, names, label)
    else:
        arrays = _read(Path(source), names)
    shapes = {value.name: input_shape(value) for value in fed_inputs(model)}
    extra = {arrays[name].ndim - len(shape) for name, (_, shape) in shapes.items()}
    if extra not in ({0}, {1}):
        ranks = ", ".join(f"{n} {arrays[n].ndim} for {len(s)}" for n, (_, s) in shapes.items())
        raise DataError(f"{label}: ranks do not fit the inputs ({ranks})")
    whole = extra == {1}
    bound: dict[str, int | None] = {}
    if not whole:
        bound = {s[0]: dims.get(s[0]) for _, s in shapes.values() if s and isinstance(s[0], str)}
    for name, (element, shape) in shapes.items():
        arrays[name] = _typed(arrays[name], element, f"{label}: array {name!r}")
        sizes = arrays[name].shape[1:]
        for axis, (dim, size) in enumerate(zip(shape if whole else shape[1:], sizes, strict=True)):
            wanted = dim if isinstance(dim, int) else bound.setdefault(dim, size)
            if wanted is not None and wanted != size:
                raise DataError(
                    f"{label}: axis {axis + 1} of {name!r} has size {size}, not {wanted}"
                )
    counts = {name: len(array) for name, array in arrays.items() if array.ndim}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"{label}: sample counts differ ({listed})")
    if 0 in counts.values():
        raise DataError(f"{label}: holds no samples")
    return arrays


def calibration_feeds(
    arrays: Mapping[str, Array], model: onnx.ModelProto, dims: Mapping[str, int], limit: int
) -> list[dict[str, Array]]:
    """Cut what `load_calibration` returned into feeds, of at most ``limit`` samples in all.

    A static first dimension k takes k samples at a time, a symbolic one as many as ``dims``
    binds it to (one when it does not); the last feed may be shorter when all are symbolic.
    Raises DataError when there are fewer samples than one feed needs.
    """
    shapes = {value.name: input_shape(value)[1] for value in fed_inputs(model)}
    if all(arrays[name].ndim == len(shape) + 1 for name, shape in shapes.items()):
        count = min((len(array) for array in arrays.values()), default=0)
        return [{name: a[i] for name, a in arrays.items()} for i in range(min(count, limit))]
    firsts = {name: shape[0] for name, shape in shapes.items() if shape}
    steps = {n: d if isinstance(d, int) else dims.get(d, 1) for n, d in firsts.items()}
    count = min((len(arrays[name]) for name in steps), default=1)
    largest = max(steps.values(), default=1)
    if any(count < step for name, step in steps.items() if isinstance(firsts[name], int)):
        raise DataError(f"{count} samples are too few: the model takes {largest} at a time")
    total = min(count, max(limit, largest))
    loose = all(isinstance(dim, str) for dim in firsts.values()) and len(set(steps.values())) == 1
    number = -(-total // largest) if loose else total // largest
    feeds = []
    for i in range(number):
        feed = {
            n: a[i * steps[n] : min((i + 1) * steps[n], total)]
            for n, a in arrays.items()
            if n in steps
        }
        feeds.append(feed | {name: a for name, a in arrays.items() if name not in steps})
    return feeds


def _typed(array: Array, element: int, what: str) -> Array:
    """``array`` in the element type of its input, which float64 may become by rounding."""
    wanted = helper.tensor_dtype_to_np_dtype(element)
    narrowed: dict[int, str] = {
        int(TensorProto.FLOAT): "float64",
        int(TensorProto.BFLOAT16): "float32",
    }  # npz: no bfloat16
    if element == TensorProto.STRING and array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype != wanted and array.dtype != narrowed.get(element):
        raise DataError(f"{what} is {array.dtype}, not {wanted}: convert it")
    with np.errstate(over="ignore"):
        typed = array.astype(wanted, copy=False)
    if typed.dtype.kind not in "biuO" and not np.isfinite(typed.astype(np.float64)).all():
        raise DataError(f"{what} holds NaN or infinity")
    return typed


def _read(path: Path, names: set[str]) -> dict[str, Array]:
    """The arrays called ``names``, which must be all there are; sizes are checked before."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            found = [info.filename.removesuffix(".npy") for info in members]
            _check_names(found, names, str(path))
            if len(found) != len(names):
                raise DataError(f"{path}: two arrays have the same name")
            for info in members:
                with archive.open(info) as stream:
                    _check_header(stream, info.file_size)
            if sum(info.file_size for info in members) > CALIBRATION_LIMIT:
                raise ValueError(f"more than {CALIBRATION_LIMIT >> 30} GiB unpacked")
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in names}
    except DataError:
        raise
    except Exception as error:  # whatever zipfile, zlib and numpy say to a malformed file
        raise DataError(f"{path}: not a readable .npz file: {one_line(error)}") from None


def _check_names(found: Iterable[str], names: set[str], label: str) -> None:
    wrong = sorted(names.symmetric_difference(found))
    missing = [name for name in wrong if name in names]
    if missing:
        raise DataError(f"{label}: no array for input {missing[0]!r}")
    if wrong:
        inputs = ", ".join(sorted(names))
        raise DataError(f"{label}: array {wrong[0]!r} is no input (inputs: {inputs})")


def _check_header(stream: Any, size: int) -> None:
    """Refuse an array whose stated shape is not what its member holds."""
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else (np.lib.format.read_array_header_2_0)
    )
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError("an array is larger than its data")
