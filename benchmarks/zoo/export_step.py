"""The export of a case: its ONNX file, and its module kept for Torch-Pruning."""

from __future__ import annotations

import shutil
import time

from .case import Peer
from .catalog import case_of
from .record import Record, Spec


def run(spec: Spec, record: Record) -> None:
    """Writes ``files/model/model.onnx`` and, if it can be pickled, ``files/peer.pt``."""
    import onnx

    shutil.rmtree(spec.files, ignore_errors=True)
    spec.model.parent.mkdir(parents=True)
    record.stage("export")
    begin = time.perf_counter()
    peer = case_of(spec.module, spec.name).export(spec.model)
    record.add(seconds={"export": time.perf_counter() - begin}, peer=peer is not None)
    if peer is not None:
        record.stage("keep the module")
        record.add(pickled=_pickled(spec, peer))
    record.stage("read")
    model = onnx.load(spec.model, load_external_data=False)
    record.add(
        nodes=len(model.graph.node),
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        bytes=sum(file.stat().st_size for file in spec.model.parent.iterdir()),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
    )


def _pickled(spec: Spec, peer: Peer) -> bool:
    """Whether the module went to disk; if not, its step exports it again."""
    import torch

    try:
        torch.save((peer.module, peer.inputs), spec.peer)
    except Exception:  # whatever a module's own __reduce__ raises
        spec.peer.unlink(missing_ok=True)
        return False
    return True
