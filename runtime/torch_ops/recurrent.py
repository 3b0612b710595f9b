"""LSTM, GRU and RNN, in one direction or both.

The plain forms run in torch's own kernels, which have the gates of an LSTM in the order i, f, g, o
where ONNX has i, o, f, c, and those of a GRU in the order r, z, n where ONNX has z, r, h. Given
lengths, peepholes, other activations, clipping, or a GRU whose reset gate comes before the product
are computed step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .registry import Call, Unsupported, operator

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""For every gate of torch its place in ONNX."""
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": torch.nn.functional.softsign,
    "softplus": torch.nn.functional.softplus,
    "hardsigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
}
Parts: TypeAlias = "tuple[Tensor | None, ...]"


@operator("LSTM", "GRU", "RNN")
def recurrent(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> Any:
    """Outputs Y (sequence, directions, batch, hidden), Y_h and, for LSTM, Y_c."""
    batch_first = bool(call.get("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
        h0, c0 = (s if s is None else s.transpose(0, 1) for s in (h0, c0))
    directions, hidden = w.shape[0], r.shape[-1]
    zeros = x.new_zeros(directions, x.shape[1], hidden)
    states = [zeros if h0 is None else h0, zeros if c0 is None else c0]
    if lengths is not None and bool((lengths == x.shape[0]).all()):
        lengths = None
    plain = _plain(call) and lengths is None and peepholes is None
    run = _by_torch if plain else _by_steps
    y, h, c = run(call, x, (w, r, bias, lengths, peepholes), states)
    if batch_first:
        y, h, c = y.permute(2, 0, 1, 3), h.transpose(0, 1), c.transpose(0, 1)
    return (y, h, c) if call.op == "LSTM" else (y, h)


def _activations(call: Call, directions: int) -> list[str]:
    given = call.get("activations") or _DEFAULTS[call.op] * directions
    names = [name.lower() for name in given]
    if call.get("activation_alpha") or call.get("activation_beta"):
        raise Unsupported("activations with alpha or beta")
    if unknown := [name for name in names if name not in _FUNCTIONS]:
        raise Unsupported(f"activation {unknown[0]}")
    return names


def _plain(call: Call) -> bool:
    """Whether torch has a kernel for the form."""
    directions = 2 if call.get("direction", "forward") == "bidirectional" else 1
    names = _activations(call, directions)
    usual = [name.lower() for name in _DEFAULTS[call.op]] * directions
    reset = call.op != "GRU" or call.get("linear_before_reset", 0)
    other = call.get("clip") or call.get("input_forget", 0)
    return names == usual and bool(reset) and not other


def _by_torch(call: Call, x: Tensor, parts: Parts, states: Sequence[Tensor]) -> Any:
    w, r, bias = parts[:3]
    assert w is not None and r is not None
    order = _GATES[call.op]
    directions, hidden = w.shape[0], r.shape[-1]
    reverse = call.get("direction", "forward") == "reverse"

    def ordered(rows: Tensor) -> Tensor:
        return torch.cat([rows[g * hidden : (g + 1) * hidden] for g in order])

    flat: list[Tensor] = []
    for d in range(directions):
        flat += [ordered(w[d]), ordered(r[d])]
        if bias is not None:
            flat += [ordered(half) for half in bias[d].chunk(2)]
    x = x.flip(0) if reverse else x
    h, c = (state.contiguous() for state in states)
    shared = (flat, bias is not None, 1, 0.0, False, directions == 2, False)
    if call.op == "LSTM":
        y, h, c = torch.lstm(x, (h, c), *shared)
    else:
        kernel = torch.gru if call.op == "GRU" else torch.rnn_tanh
        y, h = kernel(x, h, *shared)
    y = y.flip(0) if reverse else y
    return y.reshape([*y.shape[:2], directions, hidden]).transpose(1, 2), h, c


def _by_steps(call: Call, x: Tensor, parts: Parts, states: Sequence[Tensor]) -> Any:
    w = parts[0]
    assert w is not None
    kind = call.get("direction", "forward")
    names = _activations(call, w.shape[0])
    each = len(names) // w.shape[0]
    found = []
    for d in range(w.shape[0]):
        functions = [_FUNCTIONS[n] for n in names[d * each : (d + 1) * each]]
        own = tuple(p if k == 3 or p is None else p[d] for k, p in enumerate(parts))
        reverse = kind == "reverse" or d == 1
        found.append(_direction(call, x, own, [s[d] for s in states], functions, reverse))
    ys, hs, cs = zip(*found, strict=True)
    return torch.stack(ys, 1), torch.stack(hs), torch.stack(cs)


def _direction(
    call: Call,
    x: Tensor,
    parts: Parts,
    states: Sequence[Tensor],
    functions: Sequence[Callable[[Tensor], Tensor]],
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    w, r, bias, lengths, peepholes = parts
    assert w is not None and r is not None
    h, c = states
    step = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[call.op]
    wb, rb = bias.chunk(2) if bias is not None else (w.new_zeros(len(w)), w.new_zeros(len(w)))
    outputs: list[Tensor] = []
    for t in range(x.shape[0] - 1, -1, -1) if reverse else range(x.shape[0]):
        new_h, new_c = step(call, x[t] @ w.t() + wb, h, c, (r, rb, peepholes), functions)
        y = new_h
        if lengths is not None:  # beyond its length a sequence stands still and gives zeros
            runs = (t < lengths.to(x.device)).unsqueeze(1)
            y = torch.where(runs, new_h, torch.zeros_like(new_h))
            new_h, new_c = torch.where(runs, new_h, h), torch.where(runs, new_c, c)
        h, c = new_h, new_c
        outputs.append(y)
    return torch.stack(outputs[::-1] if reverse else outputs), h, c


def _clipped(call: Call, x: Tensor) -> Tensor:
    limit = call.get("clip")
    return x.clamp(-limit, limit) if limit else x


def _lstm(call: Call, given: Tensor, h: Tensor, c: Tensor, parts: Any, functions: Any) -> Any:
    r, rb, peepholes = parts
    f, g, final = functions
    i, o, forget, cell = (given + h @ r.t() + rb).chunk(4, 1)
    pi, po, pf = (0, 0, 0) if peepholes is None else peepholes.chunk(3)
    i = f(_clipped(call, i + pi * c))
    coupled = call.get("input_forget", 0)
    forget = 1 - i if coupled else f(_clipped(call, forget + pf * c))
    c = forget * c + i * g(_clipped(call, cell))
    return f(_clipped(call, o + po * c)) * final(_clipped(call, c)), c


def _gru(call: Call, given: Tensor, h: Tensor, c: Tensor, parts: Any, functions: Any) -> Any:
    r, rb, _ = parts
    f, g = functions
    rz, rr, rh = r.chunk(3)
    bz, br, bh = rb.chunk(3)
    z, reset, new = given.chunk(3, 1)
    z = f(_clipped(call, z + h @ rz.t() + bz))
    reset = f(_clipped(call, reset + h @ rr.t() + br))
    if call.get("linear_before_reset", 0):
        new = g(_clipped(call, new + reset * (h @ rh.t() + bh)))
    else:
        new = g(_clipped(call, new + (reset * h) @ rh.t() + bh))
    return (1 - z) * new + z * h, c


def _rnn(call: Call, given: Tensor, h: Tensor, c: Tensor, parts: Any, functions: Any) -> Any:
    r, rb, _ = parts
    return functions[0](_clipped(call, given + h @ r.t() + rb)), c
