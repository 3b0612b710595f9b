"""What watches a pipeline: events, bisecting, tables, printed IR, and crash reproducers."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as oir
import pytest

from secateur.ir.errors import CertificateError, SecateurError
from secateur.ir.io import to_proto
from secateur.passes.base import Pass, PassContext, PassResult
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

from .chosen_passes import Edited, Fails, Verdict, make_model, scale_weight

# --- failures ---


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
