"""The pass manager: contracts, verification, instrumentations, and third-party passes."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import numpy_helper, parser

from secateur.ir.errors import CertificateError, ModelError, SecateurError, TargetError
from secateur.ir.io import load_model, to_proto
from secateur.passes.base import Contract, Pass, PassContext, PassResult
from secateur.passes.eliminate_dead import EliminateDead
from secateur.passes.fold_constants import FoldConstants
from secateur.passes.instrumentation import (
    Bisect,
    CrashReproducer,
    Instrumentation,
    PrintIRAfter,
    Statistics,
    Step,
    TimePasses,
)
from secateur.passes.manager import PassManager, PipelineResult
from secateur.passes.pipeline import parse_pipeline

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


def test_a_pipeline_runs_on_a_clone() -> None:
    model = make_model()
    before = bytes_of(model)
    weight = model.graph.initializers["w"].const_value
    result = PassManager([FoldConstants(), EliminateDead()]).run(model)
    assert bytes_of(model) == before
    assert model.graph.initializers["w"].const_value is weight
    assert [node.op_type for node in result.model.graph] == ["Mul"]
    assert [p.name for p in result.passes] == ["fold-constants", "eliminate-dead"]
    assert result.modified and len(result.timings) == 2 and min(result.timings) >= 0
    onnx.checker.check_model(to_proto(result.model))
    assert PassManager([EliminateDead()]).run(model, clone=False).model is model
    assert bytes_of(model) != before


def test_an_empty_pipeline() -> None:
    result = PassManager([]).run(make_model())
    assert not result.modified and result.passes == ()


def test_an_unsorted_graph_is_a_model_error() -> None:
    model = make_model()
    first = model.graph[1]
    model.graph.remove(first)
    model.graph.append(first)
    with pytest.raises(ModelError, match="not in topological order"):
        PassManager([]).run(model)


# --- contracts ---


def test_preserves_is_checked_with_numbers() -> None:
    passes = [Edited(scale_weight)]
    with pytest.raises(
        CertificateError, match="pass 'edited': promises to preserve the outputs, but output 'y'"
    ):
        PassManager(passes).run(make_model())
    assert PassManager(passes, verify=False).run(make_model()).modified


def test_preserves_uses_the_given_check() -> None:
    seen: list[tuple[bytes, bytes, int]] = []

    def check(before: oir.Model, after: oir.Model, context: PassContext) -> Verdict:
        seen.append((bytes_of(before), bytes_of(after), context.seed))
        return Verdict(len(seen) < 2)

    model = make_model()
    passes = [Edited(nothing, modified=False), Edited(scale_weight), Edited(scale_weight)]
    with pytest.raises(CertificateError, match=r"but outputs differ by much$"):
        PassManager(passes, check_preserves=check).run(model, PassContext(seed=5))
    assert len(seen) == 2  # what is not modified is not compared
    assert seen[0][0] == bytes_of(model) and seen[0][1] == seen[1][0] != seen[1][1]
    assert seen[0][2] == 5


def test_calibration_data_and_sizes_reach_the_numbers() -> None:
    context = PassContext(dims={"N": 3}, calibration={"x": np.ones((6, 4), np.float32)}, threads=1)
    assert PassManager([EliminateDead()]).run(make_model(), context).modified
    with pytest.raises(CertificateError, match="on calibration 0"):
        # Equal wherever the random feeds look: only the calibration data shows the change.
        PassManager([Edited(_break_for_ones)]).run(make_model(), context)


def test_a_model_that_random_inputs_cannot_run_needs_help() -> None:
    """``w`` has 4 elements, so N must be 4: the default size does not run."""
    proto = parser.parse_model(TEXT.replace("float[N,4]", "float[N]"))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    manager = PassManager([EliminateDead()])
    with pytest.raises(CertificateError, match=r"pass 'eliminate-dead': cannot be checked.*sizes"):
        manager.run(load_model(proto))
    assert manager.run(load_model(proto), PassContext(dims={"N": 4})).modified
    calibration = {"x": np.ones((2, 4), np.float32)}
    assert manager.run(load_model(proto), PassContext(calibration=calibration)).modified


def _break_for_ones(model: oir.Model) -> None:
    """y += 1 where x equals 1 everywhere."""
    graph = model.graph
    y = graph.outputs[0]
    one = oir.Value(name="one", const_value=oir.tensor(np.ones((), np.float32), name="one"))
    one.type, one.shape = oir.TensorType(oir.DataType.FLOAT), oir.Shape([])
    graph.register_initializer(one)
    same = oir.node("Equal", [graph.inputs[0], one])
    number = oir.node("Cast", [same.outputs[0]], {"to": 1})
    old = y.producer()
    assert old is not None
    inner = oir.node("Mul", list(old.inputs))
    old_index = list(graph).index(old)
    graph.insert_before(graph[old_index], [same, number, inner])
    total = oir.node("Add", [inner.outputs[0], number.outputs[0]])
    graph.insert_before(old, total)
    y.replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
    graph.remove(old, safe=True)
    total.outputs[0].name, total.outputs[0].type, total.outputs[0].shape = "y", y.type, y.shape


def test_a_pass_that_hides_a_change_is_caught() -> None:
    with pytest.raises(CertificateError, match="says it changed nothing, but the model differs"):
        PassManager([Edited(scale_weight, modified=False)]).run(make_model())


def rename_output(model: oir.Model) -> None:
    model.graph.outputs[0].name = "z"


def resize_input(model: oir.Model) -> None:
    model.graph.inputs[0].shape = oir.Shape([2, 4])


def drop_producer(model: oir.Model) -> None:
    model.graph.remove(model.graph[1])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rename_output, "changed the interface of the model: output 'y'"),
        (resize_input, "changed the interface of the model: input 'x'"),
        (drop_producer, "broke the model: .*twice"),
    ],
)
def test_structure_is_checked_whatever_the_contract(edit: Edit, message: str) -> None:
    for kind in (Edited, Masked, Approximate):
        current = kind(edit, (("drift", 0.0),), certificate=Verdict(True))
        with pytest.raises(CertificateError, match=f"pass '{kind.name}': {message}"):
            PassManager([current]).run(make_model())


def test_problems_of_the_input_are_not_held_against_a_pass() -> None:
    model = make_model()
    twice = model.graph[1].outputs[0]
    twice.type, twice.shape = oir.TensorType(oir.DataType.FLOAT), oir.Shape([5])  # it has 4
    assert PassManager([EliminateDead()]).run(model).modified


@pytest.mark.parametrize("verify", [True, False])
def test_masks_always_needs_a_certificate(verify: bool) -> None:
    def run(certificate: object) -> PipelineResult:
        return PassManager([Masked(scale_weight, certificate=certificate)], verify=verify).run(
            make_model()
        )

    with pytest.raises(CertificateError, match="pass 'masked': removed units without a certif"):
        run(None)
    with pytest.raises(CertificateError, match="certificate failed: outputs differ by much"):
        run(Verdict(False))
    with pytest.raises(CertificateError, match="certificate failed: no reason given"):
        run(object())
    assert run(Verdict(True)).modified


def test_approximates_reports_its_drift() -> None:
    with pytest.raises(CertificateError, match="does not report its 'drift'"):
        PassManager([Approximate(scale_weight)]).run(make_model())
    drifting = Approximate(scale_weight, (("drift", 0.01),))
    assert PassManager([drifting]).run(make_model()).results[0].statistics["drift"] == 0.01


# --- failures ---


def crash(model: oir.Model) -> None:
    model.graph.remove(model.graph[0])
    raise ZeroDivisionError("first line\nsecond line")


def refuse(model: oir.Model) -> None:
    raise TargetError("cannot reach 0.5")


def test_errors_name_the_pass_and_keep_their_kind() -> None:
    with pytest.raises(TargetError, match=r"^pass 'edited': cannot reach 0.5$"):
        PassManager([Edited(refuse)]).run(make_model())
    with pytest.raises(
        SecateurError, match=r"^pass 'edited': ZeroDivisionError: first line second line$"
    ) as caught:
        PassManager([Edited(crash)]).run(make_model())
    assert caught.value.exit_code == 1 and isinstance(caught.value.__cause__, ZeroDivisionError)


@dataclass(frozen=True)
class Fails(Pass):
    name: ClassVar[str] = "fails"
    contract: ClassVar[Contract] = Contract.PRESERVES
    summary: ClassVar[str] = "for tests"

    text: str = ""

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        crash(model)
        return PassResult(model, True)


def test_the_crash_reproducer_holds_what_the_failing_pass_got(tmp_path: Path) -> None:
    folder = tmp_path / "crash" / "here"
    passes = [FoldConstants(), Fails("a b"), EliminateDead()]
    with pytest.raises(SecateurError) as caught:
        PassManager(passes, [CrashReproducer(folder)]).run(make_model())
    assert str(folder / "reproducer.onnx") in str(caught.value)
    expected = PassManager([FoldConstants()]).run(make_model()).model
    assert onnx.load(folder / "reproducer.onnx") == to_proto(expected)
    text = (folder / "pipeline.txt").read_text()
    classes: dict[str, type[Pass]] = {p.name: type(p) for p in passes}
    assert parse_pipeline(text, classes.__getitem__) == (Fails("a b"), EliminateDead())
    assert sorted(p.name for p in folder.iterdir()) == ["pipeline.txt", "reproducer.onnx"]


def test_a_failed_check_is_reproduced_too(tmp_path: Path) -> None:
    def never(before: oir.Model, after: oir.Model, context: PassContext) -> Verdict:
        return Verdict(False)

    manager = PassManager([EliminateDead()], [CrashReproducer(tmp_path)], check_preserves=never)
    with pytest.raises(CertificateError, match="reproducer: "):
        manager.run(make_model())
    assert onnx.load(tmp_path / "reproducer.onnx") == to_proto(make_model())


def test_a_reproducer_that_cannot_be_written_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SecateurError, match=r"ZeroDivisionError.*; no reproducer, "):
        PassManager([Fails()], [CrashReproducer(tmp_path / "file")]).run(make_model())


# --- instrumentation ---


class Recorder(Instrumentation):
    def __init__(self) -> None:
        self.events: list[str] = []

    def before_pipeline(self, model: oir.Model, passes: Any, context: PassContext) -> None:
        self.events.append(f"start {len(passes)}")

    def before_pass(self, step: Step, model: oir.Model) -> bool:
        self.events.append(f"before {step.current.name} {step.index}/{step.total}")
        return step.current.name != "fold-constants"

    def after_pass(self, step: Step, result: PassResult, seconds: float) -> None:
        assert seconds >= 0
        self.events.append(f"after {step.current.name} {result.modified}")

    def failed(self, step: Step, error: Exception) -> str | None:
        self.events.append(f"failed {step.current.name} {type(error).__name__}")
        return "see the log"

    def after_pipeline(self, result: PipelineResult) -> None:
        self.events.append(f"end {len(result.passes)}")


def test_the_order_of_events() -> None:
    recorder = Recorder()
    PassManager([FoldConstants(), EliminateDead()], [recorder]).run(make_model())
    assert recorder.events == [
        "start 2",
        "before fold-constants 1/2",
        "before eliminate-dead 2/2",
        "after eliminate-dead True",
        "end 1",
    ]
    recorder = Recorder()
    with pytest.raises(SecateurError, match=r"; see the log$"):
        PassManager([Fails()], [recorder]).run(make_model())
    assert recorder.events == ["start 1", "before fails 1/1", "failed fails ZeroDivisionError"]


@pytest.mark.parametrize(("limit", "nodes"), [(0, 3), (1, 2), (2, 1), (9, 1)])
def test_bisecting(limit: int, nodes: int) -> None:
    stream = io.StringIO()
    passes = [FoldConstants(max_bytes=64), EliminateDead()]
    result = PassManager(passes, [Bisect(limit, stream)]).run(make_model())
    assert len(result.model.graph) == nodes
    said = stream.getvalue().splitlines()
    words = ["running" if limit > i else "NOT running" for i in range(2)]
    assert said[0] == f"bisect: {words[0]} pass (1) fold-constants{{max-bytes=64}}"
    assert said[1] == f"bisect: {words[1]} pass (2) eliminate-dead"


def test_tables_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    passes = [FoldConstants(), EliminateDead()]
    result = PassManager(passes, [TimePasses(), Statistics()]).run(make_model())
    out, err = capsys.readouterr()
    assert out == ""
    rows = [line.split() for line in err.splitlines()]
    for p, r, seconds in zip(result.passes, result.results, result.timings, strict=True):
        assert [p.name, f"{seconds:.3f}"] in [row[:2] for row in rows]
        for key, value in r.statistics.items():
            assert [p.name, key, str(value)] in rows
    assert ["total", f"{sum(result.timings):.3f}"] in rows


def test_printing_the_ir_after_passes() -> None:
    from secateur.ir.printer import format_model

    def printed(names: list[str] | None) -> tuple[str, PipelineResult]:
        stream = io.StringIO()
        passes = [FoldConstants(), EliminateDead()]
        result = PassManager(passes, [PrintIRAfter(names, stream)]).run(make_model())
        return stream.getvalue(), result

    text, result = printed(["eliminate-dead"])
    header, _, body = text.partition("\n")
    assert header == "// After eliminate-dead (2 of 2)"
    assert body.strip() == format_model(result.model).strip()
    assert re.findall(r"// After \S+", printed(None)[0]) == [
        "// After fold-constants",
        "// After eliminate-dead",
    ]


def test_a_broken_model_is_printed_before_it_is_refused() -> None:
    stream = io.StringIO()
    with pytest.raises(CertificateError):
        PassManager([Edited(scale_weight)], [PrintIRAfter(None, stream)]).run(make_model())
    assert "// After edited (1 of 1)" in stream.getvalue()


# --- third parties ---


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example plug-in and the metadata that an installation would have."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("plugin") / "source"
    shutil.copytree(Path(__file__).parent / "plugin", folder)
    code = "import setuptools; setuptools.setup()"
    command = [sys.executable, "-c", code, "-q", "egg_info"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def python(code: str, *folders: Path) -> str:
    """What ``code`` prints in a fresh interpreter that sees ``folders`` as installed."""
    path = os.pathsep.join([*map(str, folders), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_an_installed_plugin_is_found_and_runs(plugin: Path) -> None:
    code = """
import onnx_ir as oir
from secateur.passes.manager import PassManager
from secateur.passes.pipeline import format_pipeline, parse_pipeline
from secateur.passes.registry import pass_registry
passes = parse_pipeline('annotate{text="two words"},eliminate-dead')
graph = oir.Graph([], [], nodes=[], opset_imports={"": 18}, name="g")
result = PassManager(passes, verify=False).run(oir.Model(graph, ir_version=10))
print(pass_registry().provider("annotate"), format_pipeline(passes), result.model.metadata_props)
"""
    assert python(code, plugin) == (
        'secateur-example-plugin annotate{text="two words"},eliminate-dead '
        "{'note': 'two words'}\n"
    )


def test_rules_and_criteria_of_a_plugin_are_found(plugin: Path) -> None:
    code = """
from secateur.ir.rules.registry import find_rule
from secateur.passes.criteria import criteria
print(find_rule("example.plugin", "ScaleBias").provider, criteria().provider("last"))
print(criteria().get("last").__module__)
"""
    assert python(code, plugin).split() == [
        "secateur-example-plugin",
        "secateur-example-plugin",
        "secateur_example_plugin.criteria",
    ]


def test_two_plugins_with_one_name_are_refused(plugin: Path, tmp_path: Path) -> None:
    info = tmp_path / "other_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[secateur.passes]\nannotate = nowhere:Nothing\n")
    code = "from secateur.passes.registry import find_pass; find_pass('eliminate-dead')"
    said = python(code, plugin, tmp_path)
    assert (
        "UsageError: pass 'annotate' is provided by both 'other-plugin' and "
        "'secateur-example-plugin'; uninstall one of them" in said
    )
    code = "from secateur.passes.registry import find_pass; find_pass('annotate')"
    assert "pass 'annotate' of 'other-plugin' cannot be loaded (ModuleNotFound" in python(
        code, tmp_path
    )
