"""The geometry of windows that convolution and pooling share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .registry import Call


@dataclass(frozen=True)
class Windows:
    """Windows over the spatial axes, first axis first: sizes, steps, paddings on both sides."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """How far the windows reach, holes included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def symmetric(self) -> bool:
        """Whether both sides are padded alike."""
        return self.begins == self.ends

    @property
    def padded(self) -> bool:
        """Whether anything is padded."""
        return any(self.begins) or any(self.ends)


def windows(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> Windows:
    """The windows of a Conv or a pooling over axes of these ``sizes``."""
    rank = len(sizes)
    kernel = tuple(kernel)
    strides = tuple(call.get("strides") or (1,) * rank)
    dilations = tuple(call.get("dilations") or (1,) * rank)
    mode = call.get("auto_pad", "NOTSET")
    pads = tuple(call.get("pads") or (0,) * (2 * rank))
    if mode == "VALID":
        pads = (0,) * (2 * rank)
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        needed = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
        ]
        less = [n // 2 for n in needed]
        more = [n - half for n, half in zip(needed, less, strict=True)]
        pads = (*less, *more) if mode == "SAME_UPPER" else (*more, *less)
    return Windows(kernel, strides, dilations, pads[:rank], pads[rank:])


def pad_sides(x: Tensor, begins: Sequence[int], ends: Sequence[int], value: float = 0.0) -> Tensor:
    """Pads (or, by negative numbers, crops) the last axes with a value."""
    if not any(begins) and not any(ends):
        return x
    flat = [n for pair in zip(reversed(begins), reversed(ends), strict=True) for n in pair]
    return F.pad(x, flat, value=value)
