"""The differentiable executor: an ONNX graph run by PyTorch, with gradients for its weights.

The graph is run as it is, node by node, by the operators of `torch_ops`. Chosen weights are leaf
tensors in float32 (float64 where the model has float64); what follows from the other constants
alone is computed once. Models in float16 and bfloat16 run in float32. Sizes are looked up in every
run, so symbolic dimensions may take any size from run to run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as oir
import torch
from torch import Tensor

from ..ir.constants import constants
from ..ir.errors import ModelError, SecateurError, UsageError, reason
from .session import Array
from .torch_ops.registry import Unsupported
from .torch_ops.tensors import to_torch
from .torch_program import Program, Step, compile_graph, describe, reads, unsupported

_LAID_OUT = frozenset(["Conv", "ConvTranspose"])
_STATISTICS = {"BatchNormalization": (3, 4)}
_FEW = 64
"""Vectors of up to so many integers are taken for sizes and stay on the CPU."""


class TorchExecutor:
    """Runs a flat model (see `ir.flatten`) in PyTorch.

    ``parameters`` are the weights named in ``trained``, by name, in the order of the graph: leaves
    whose gradients a backward pass fills. A value that follows from constants alone may be named,
    too. ``wanted`` are the values that a run gives, the graph's
    outputs by default; only what they depend on is run. With ``renew``, BatchNormalization uses the
    statistics of the batch while ``renewing`` is set, and those of the model follow in ``buffers``.

    Raises UsageError for an operator, a form of one or an element type that it does not know.
    """

    def __init__(
        self,
        model: oir.Model,
        *,
        trained: Collection[str] = (),
        wanted: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        renew: bool = False,
    ) -> None:
        self.device = torch.device(device)
        graph = model.graph
        outputs = [str(v.name) for v in graph.outputs] if wanted is None else list(wanted)
        versions = dict(model.opset_imports)
        self._program = compile_graph(graph, versions, outputs)
        self._renewing = compile_graph(graph, versions, outputs, True) if renew else self._program
        self.renewing = False
        steps = list(_all_steps(self._program))
        self._images = any(step.call.op in _LAID_OUT for step in steps)
        used = {name for step in steps for name in step.inputs} | set(outputs)
        used |= {o for step in steps for body in step.bodies.values() for o in body.outputs}
        statistics = {
            step.inputs[k]
            for step in steps
            for k in (_STATISTICS.get(step.call.op, ()) if renew else ())
        }
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self._constants: dict[str, Tensor] = {}
        for value, tensor in constants(graph):
            name = str(value.name)
            if name not in used:
                continue
            try:
                data = self._placed(to_torch(tensor.numpy()))
            except Unsupported as error:
                raise UsageError(
                    f"the differentiable executor cannot hold the constant '{name}': {error}"
                ) from error
            if name in trained:
                self.parameters[name] = self._laid_out(value, data).requires_grad_()
            elif name in statistics:
                self.buffers[name] = data
            else:
                self._constants[name] = data
        self._program = self._folded(self._program, trained)
        if renew:
            known = self._constants.keys() | self.parameters.keys()
            self._renewing = _without(self._renewing, known)
        else:
            self._renewing = self._program

    def __call__(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The wanted values on a feed of tensors (see `feed_tensors`).

        Raises ModelError where an operator fails, UsageError for a form of it that is unknown.
        """
        program = self._renewing if self.renewing else self._program
        values = {**self._constants, **self.parameters, **self.buffers, **feed}
        self._run(program, values)
        return {name: values[name] for name in program.outputs}

    def feed_tensors(self, feed: Mapping[str, Array]) -> dict[str, Tensor]:
        """Arrays as the tensors that a run takes. Raises UsageError for strings and the like."""
        try:
            found = {n: self._placed(to_torch(np.asarray(a)), data=True) for n, a in feed.items()}
        except Unsupported as error:
            raise UsageError(f"the differentiable executor takes no inputs of {error}") from error
        if not self._images:
            return found
        return {name: _channels_last(t) if t.ndim == 4 else t for name, t in found.items()}

    # -- preparation --------------------------------------------------------------------------

    def _placed(self, tensor: Tensor, data: bool = False) -> Tensor:
        """On the device, unless it is likely to be a size."""
        size = not (data or tensor.is_floating_point()) and tensor.ndim < 2
        return tensor if size and tensor.numel() <= _FEW else tensor.to(self.device)

    def _laid_out(self, value: oir.Value, data: Tensor) -> Tensor:
        by_conv = any(node.op_type in _LAID_OUT for node, _ in value.uses())
        return _channels_last(data) if data.ndim == 4 and by_conv else data

    def _folded(self, program: Program, trained: Collection[str]) -> Program:
        """The program without the steps that follow from constants; their results are kept."""
        rest: list[Step] = []
        with torch.no_grad():
            for step in program.steps:
                given = [str(v.name) for v in reads(step.node)]
                if not step.bodies and all(name in self._constants for name in given):
                    self._step(step, self._constants)
                    for name in step.outputs:
                        if name in trained:
                            self.parameters[name] = self._constants.pop(name).requires_grad_()
                        elif name in self._constants:
                            self._constants[name] = self._placed(self._constants[name])
                else:
                    rest.append(step)
        return Program(tuple(rest), program.inputs, program.outputs)

    # -- running ------------------------------------------------------------------------------

    def _run(self, program: Program, values: dict[str, Tensor]) -> None:
        for step in program.steps:
            self._step(step, values)
            for name in step.release:
                values.pop(name, None)

    def _step(self, step: Step, values: dict[str, Tensor]) -> None:
        inputs = [values[name] if name else None for name in step.inputs]
        if self.device.type != "cpu":
            inputs = self._beside(inputs)
        try:
            if step.operator is None:
                outputs: Any = self._control(step, inputs, values)
            else:
                outputs = step.operator(step.call, *inputs)
        except Unsupported as error:
            raise unsupported(step.node, str(error)) from error
        except SecateurError:
            raise
        except Exception as error:
            raise ModelError(
                f"{describe(step.node)}: PyTorch cannot run it: {reason(error)}"
            ) from error
        if isinstance(outputs, torch.Tensor):
            values[step.outputs[0]] = outputs
        else:
            for name, output in zip(step.outputs, outputs, strict=False):
                if name and output is not None:
                    values[name] = output

    def _beside(self, inputs: list[Tensor | None]) -> list[Tensor | None]:
        """The inputs with the floats where the others are: those made from sizes are on the CPU."""
        if all(t is None or t.device.type == "cpu" for t in inputs):
            return inputs
        return [t.to(self.device) if t is not None and t.is_floating_point() else t for t in inputs]

    def _control(
        self, step: Step, inputs: Sequence[Tensor | None], values: dict[str, Tensor]
    ) -> list[Tensor]:
        if step.call.op == "If":
            (condition,) = inputs
            body = step.bodies["then_branch" if bool(condition) else "else_branch"]
            self._run(body, values)
            return [values[name] for name in body.outputs]
        return self._loop(step.bodies["body"], inputs, values)

    def _loop(
        self, body: Program, inputs: Sequence[Tensor | None], values: dict[str, Tensor]
    ) -> list[Tensor]:
        most, condition, *given = inputs
        state: list[Any] = list(given)
        scans: list[list[Tensor]] = [[] for _ in body.outputs[1 + len(state) :]]
        trip = 0
        while (most is None or trip < int(most)) and (condition is None or bool(condition)):
            values.update(
                zip(body.inputs, [torch.tensor(trip), torch.tensor(True), *state], strict=True)
            )
            self._run(body, values)
            condition, *results = [values[name] for name in body.outputs]
            state = results[: len(state)]
            for scan, result in zip(scans, results[len(state) :], strict=True):
                scan.append(result)
            trip += 1
        if trip == 0 and scans:
            raise Unsupported("no iteration at all")
        return [*state, *(torch.stack(scan) for scan in scans)]


def _all_steps(program: Program) -> Any:
    for step in program.steps:
        yield step
        for body in step.bodies.values():
            yield from _all_steps(body)


def _without(program: Program, known: Collection[str]) -> Program:
    """The program without the steps whose results are known."""
    rest = [s for s in program.steps if not all(name in known for name in s.outputs if name)]
    return Program(tuple(rest), program.inputs, program.outputs)


def _channels_last(tensor: Tensor) -> Tensor:
    """Channels beside each other in memory, which convolutions like best, on CPUs too."""
    return tensor.contiguous(memory_format=torch.channels_last)
