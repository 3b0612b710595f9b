"""``annotate``: write a note into the model's metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as oir

from secateur.passes.base import Contract, Pass, PassContext, PassResult


@dataclass(frozen=True)
class Annotate(Pass):
    """Set the metadata property ``key`` to ``text``."""

    name: ClassVar[str] = "annotate"
    contract: ClassVar[Contract] = Contract.PRESERVES
    summary: ClassVar[str] = "write a note into the model's metadata"

    text: str
    key: str = "note"

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        modified = model.metadata_props.get(self.key) != self.text
        model.metadata_props[self.key] = self.text
        return PassResult(model, modified, {"notes": int(modified)})
