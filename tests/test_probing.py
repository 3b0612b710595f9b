"""Coupling rules against the ONNX backend's own node cases (see `probing`)."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from secateur.ir.analysis import analyze
from secateur.ir.rewrite import rewrite
from secateur.ir.rules import RULES
from tests.probing import probe
from tests.probing_runs import Array, freeze, runtime, size_inputs

FLOORS = {
    "attention": (101, 2),
    "control flow": (4, 2),
    "contraction": (40, 6),
    "elementwise": (480, 66),
    "loss": (50, 2),
    "ml": (8, 4),
    "movement": (90, 18),
    "normalisation": (55, 8),
    "pooling": (80, 7),
    "position": (29, 6),
    "quantisation": (40, 7),
    "random": (0, 0),
    "recurrent": (12, 3),
    "reduction": (90, 10),
    "reshape": (26, 4),
    "sampling": (28, 4),
    "sequence": (4, 2),
    "softmax": (65, 8),
    "source": (13, 3),
    "state": (25, 2),
    "text": (3, 1),
}
"""For each family, how many cases and operators are compared at the least."""

SILENT = frozenset(
    [
        *("test_loop11", "test_scan9_scalar"),
        *("test_maxunpool_export_with_output_shape", "test_maxunpool_export_without_output_shape"),
        "test_optional_has_element_empty_no_input_name_optional_input",
        "test_optional_has_element_empty_no_input_name_tensor_input",
        "test_optional_has_element_empty_no_input_optional_input",
        "test_optional_has_element_empty_no_input_tensor_input",
    ]
)
"""Cases in which rightly nothing may go: slices at positions known only at run time, scalars,
positions over all channels that no MaxPool of the model has counted, and optionals without data."""


@cache
def node_cases() -> dict[str, list[tuple[str, onnx.ModelProto, dict[str, Array]]]]:
    """(name, model, inputs) of all one-node cases on plain tensors, by family of the rule."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    found: defaultdict[str, list[tuple[str, onnx.ModelProto, dict[str, Array]]]]
    found = defaultdict(list)
    for case in cases:
        assert case.model is not None and case.data_sets
        graph = case.model.graph
        rule = RULES.get((graph.node[0].domain, graph.node[0].op_type))
        if len(graph.node) != 1 or rule is None or not all(map(_is_plain, _ends(graph))):
            continue
        given = case.data_sets[0][0]
        arrays = [
            oir.serde.deserialize_tensor(a).numpy() if isinstance(a, onnx.TensorProto) else a
            for a in given
        ]
        names = [v.name for v in graph.input]
        feeds = {n: np.asarray(a) for n, a in zip(names, arrays, strict=True)}
        found[rule.family].append((case.name, case.model, feeds))
    return dict(found)


def _ends(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    return [*graph.input, *graph.output]


def _is_plain(value: onnx.ValueInfoProto) -> bool:
    kinds = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type not in kinds


def with_sizes(
    model: onnx.ModelProto, feeds: dict[str, Array]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model with sizes, axes and positions as constants, and the other inputs."""
    node = model.graph.node[0]
    sized = [node.input[k] for k in size_inputs(node.op_type) if k < len(node.input)]
    fixed = {n: feeds[n] for n in sized if n}
    return freeze(model, fixed), {n: a for n, a in feeds.items() if n not in fixed}


@pytest.mark.parametrize("family", sorted(FLOORS))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_backend_cases(family: str) -> None:
    """Sizes, axes and positions are constants at first, then fed like data."""
    compared: Counter[str] = Counter()
    seen = set()
    for name, model, feeds in node_cases()[family]:
        node = model.graph.node[0]
        try:
            frozen, data = with_sizes(model, feeds)
            report = probe(frozen, data)
            if len(data) < len(feeds):
                probe(model, feeds, may_refuse=True)
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error
        if RULES[node.domain, node.op_type].exactness == "pinned":
            assert not report.units, f"{name}: something may go"
            continue
        if name not in SILENT:
            seen.add(node.op_type)
        if report.links or report.removals:
            compared[node.op_type] += 1
    cases, operators = FLOORS[family]
    assert compared.total() >= cases, compared
    assert len(compared) >= operators, compared
    assert set(compared) == seen


def test_every_family_is_compared() -> None:
    assert set(FLOORS) >= node_cases().keys()


# -- regressions that no single node of the backend shows ----------------------------------------


def parse(text: str, opset: int) -> onnx.ModelProto:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]> '
    model: onnx.ModelProto = onnx.parser.parse_model(header + text)
    return model


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


REGRESSIONS = {
    "scaled, yet of the same size": (
        """g (float[2, 5] x) => (float[2, 5] y)
        <float[2] scales = {1.0, 1.1}, float[0] roi = {}> {
            y = Resize<mode = "linear">(x, roi, scales)
        }""",
        18,
    ),
    "a blocked vector": (
        """g (float[6] x) => (uint8[6] y)
        <float[3] scale = {0.5, 1.0, 2.0}, uint8[3] zero = {0, 10, 20}> {
            y = QuantizeLinear<axis = 0, block_size = 2>(x, scale, zero)
        }""",
        21,
    ),
    "a scale for every row of a layer normalisation": (
        """g (float[3, 4] x, float[3, 4] scale) => (float[3, 4] y) {
            y = LayerNormalization(x, scale)
        }""",
        17,
    ),
    "reversed, to an end known only at run time": (
        """g (float[2, 4] x, int64[1] end) => (float[2, 4] y)
        <int64[1] first = {-1}, int64[1] axis = {1}, int64[1] step = {-1}> {
            y = Slice(x, first, end, axis, step)
        }""",
        13,
    ),
    "an end known only at run time": (
        """g (float[2, 6] x, int64[1] end) => (float[2, 3] y)
        <int64[1] first = {1}, int64[1] axis = {1}> { y = Slice(x, first, end, axis) }""",
        13,
    ),
    "a split with an output that nobody reads": (
        """g (float[3, 4] x) => (float[3, 3] y) <int64[2] sizes = {3, 1}> {
            y, z = Split<axis = 1>(x, sizes)
        }""",
        13,
    ),
    "an empty slice": (
        """g (float[3, 4] x) => (float[3, 0] y)
        <int64[1] start = {2}, int64[1] end = {2}, int64[1] axis = {1}> {
            y = Slice(x, start, end, axis)
        }""",
        13,
    ),
    "training before opset 14": (
        """g (float[3, 2, 2] x) => (float[3, 2, 2] y, float[2] mean, float[2] variance)
        <float[2] s = {1.0, 2.0}, float[2] b = {0.0, 1.0}, float[2] m = {0.0, 0.0},
         float[2] v = {1.0, 1.0}> {
            y, mean, variance, saved_mean, saved_variance = BatchNormalization(x, s, b, m, v)
        }""",
        9,
    ),
}


PINNED = ("a blocked vector", "reversed, to an end known only at run time")
"""Where the rule rightly lets nothing go."""

RUN_TIME = {
    "reversed, to an end known only at run time": np.array([-99]),
    "an end known only at run time": np.array([4]),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_regression(name: str) -> None:
    model = parse(*REGRESSIONS[name])
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        feeds[value.name] = RUN_TIME[name] if value.name == "end" else normal(*shape)
    report = probe(model, feeds, removals=12)
    assert (report.links or report.removals) or name in PINNED


@pytest.mark.parametrize("op", ["Shape", "Size"])
def test_an_output_that_tells_a_size_does_not_change(op: str) -> None:
    told = "int64[2]" if op == "Shape" else "int64"
    model = parse(
        f"""g (float[1, 3] x, float[3, 4] w, float[4, 2] v) => (float[1, 2] y, {told} told) {{
            h = MatMul(x, w)
            y = MatMul(h, v)
            told = {op}(h)
        }}""",
        17,
    )
    model = freeze(model, {"w": normal(3, 4), "v": normal(4, 2)})
    analysis = analyze(oir.serde.deserialize_model(model))
    assert analysis.unit_count == 4
    small = rewrite(analysis, np.array([True, False, False, False])).model
    assert small.graph.initializers["w"].shape == (3, 3)
    run, _ = runtime(oir.serde.serialize_model(small))
    np.testing.assert_array_equal(run({"x": normal(1, 3)})[1], [1, 4] if op == "Shape" else 4)
