"""The peer onnxsim: its structured pruning on the same file, after its own simplification.

`apply_structured_pruning` removes channels of matrix products and convolutions (it expects
BatchNormalization to be fused, which its simplification does), `apply_attention_head_pruning`
heads of fused attention operators, `apply_moe_expert_channel_pruning` channels of the MoE operator.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .record import Record, Spec
from .shares import Shapes, elements, prunable_share

PASSES = (
    "apply_structured_pruning",
    "apply_attention_head_pruning",
    "apply_moe_expert_channel_pruning",
)


def run(spec: Spec, record: Record) -> None:
    """Simplifies, prunes, counts what is left, and runs the result."""
    import onnx
    import onnxsim

    record.stage("simplify")
    begin = time.perf_counter()
    model = onnx.load(spec.model)
    try:
        model, _ = onnxsim.simplify(model)
    except Exception as error:  # what it cannot simplify, it may still prune
        record.add(note=f"not simplified: {error}"[:300])
    before = weights(model)
    for name in PASSES:
        record.stage(name)
        model = getattr(onnxsim, name)(model, sparsity=spec.ratio)
    record.add(seconds={"prune": time.perf_counter() - begin})
    after = weights(model)
    record.add(
        prunable=prunable_share(before, after, spec.ratio),
        left={"parameters": elements(after) / max(elements(before), 1)},
    )
    pruned = spec.files / "onnxsim.onnx"
    large = elements(after) * 4 > 2**30
    onnx.save(model, pruned, save_as_external_data=large, location="onnxsim.onnx.data")
    del model
    record.stage("run")
    record.add(runs=same_interface(spec.model, pruned, spec.dims))
    record.stage("count")
    whole = macs(spec.model, spec.dims)
    record.values["left"]["macs"] = macs(pruned, spec.dims) / whole if whole else 1.0


def weights(model: Any) -> Shapes:
    """Shapes of the floating-point initializers."""
    from onnx import TensorProto

    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    return {t.name: list(t.dims) for t in model.graph.initializer if t.data_type in kinds}


def macs(path: Path, dims: dict[str, int], whole: bool = False) -> int:
    """Multiply-accumulates of a file by Secateur's cost model.

    With ``whole``, raises ValueError where some node has no rule or no known shape, and so may
    not be counted.
    """
    import secateur
    from secateur.runtime.cost import CostModel

    analysis = secateur.analyze(path, dims=dims)
    if whole and analysis.warnings:
        raise ValueError(f"not all is counted: {analysis.warnings[0]}")
    return CostModel(analysis).costs().macs


def same_interface(original: Path, pruned: Path, dims: dict[str, int]) -> bool:
    """Whether the pruned model runs in ONNX Runtime and gives outputs of the same shapes.

    Raises what ONNX Runtime raises when it does not run.
    """
    import onnx
    import onnxruntime as ort

    from secateur.ir.bindings import bind_dims
    from secateur.ir.io import load_model
    from secateur.runtime.inputs import random_feed

    model = onnx.load(original, load_external_data=False)
    feed = random_feed(model, bind_dims(load_model(original), dims), 0)
    shapes = []
    for path in (original, pruned):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given = {i.name: feed[i.name] for i in session.get_inputs()}
        outputs = session.run(None, given)
        shapes.append([getattr(output, "shape", None) for output in outputs])
    return bool(shapes[0] == shapes[1])
