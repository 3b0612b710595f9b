"""The pass manager: clones, contracts and errors."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import numpy_helper, parser

from secateur.ir.errors import CertificateError, ModelError, SecateurError, TargetError
from secateur.ir.io import load_model, to_proto
from secateur.passes.base import PassContext
from secateur.passes.eliminate_dead import EliminateDead
from secateur.passes.fold_constants import FoldConstants
from secateur.passes.manager import PassManager, PipelineResult

from .chosen_passes import (
    TEXT,
    Approximate,
    Edit,
    Edited,
    Masked,
    Verdict,
    bytes_of,
    crash,
    make_model,
    nothing,
    scale_weight,
)


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
    with pytest.raises(ModelError, match="the graph is not sorted"):
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
    with pytest.raises(CertificateError, match="certificate failed: no reason given") as caught:
        run(object())
    assert "please report it" in str(caught.value), "no rule of a plug-in can be at fault"
    assert run(Verdict(True)).modified


def test_approximates_reports_its_drift() -> None:
    with pytest.raises(CertificateError, match="does not report its 'drift'"):
        PassManager([Approximate(scale_weight)]).run(make_model())
    drifting = Approximate(scale_weight, (("drift", 0.01),))
    assert PassManager([drifting]).run(make_model()).results[0].statistics["drift"] == 0.01


# --- failures ---


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
