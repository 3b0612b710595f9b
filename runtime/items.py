"""Calibration data as items that can be drawn in any order and put together in feeds.

What an item is follows from the model, as in `calibration.calibration_feeds`: one sample where all
inputs have a symbolic first dimension; k samples where it is fixed at k (or bound to k); one whole
feed where the arrays have one axis more than the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from ..ir.errors import DataError
from .session import Array

Items = npt.NDArray[np.int64]


class Samples:
    """``count`` items of ``size`` samples each; ``loose`` ones share a feed."""

    def __init__(
        self, arrays: Mapping[str, Array], model: oir.Model, dims: Mapping[str, int]
    ) -> None:
        inputs = [v for v in model.graph.inputs if not v.is_initializer()]
        missing = [str(v.name) for v in inputs if v.name not in arrays]
        if missing:
            raise DataError(f"calibration: no array for input '{missing[0]}'")
        self._arrays = {str(v.name): np.asarray(arrays[str(v.name)]) for v in inputs}
        ranks = {str(v.name): 0 if v.shape is None else v.shape.rank() for v in inputs}
        self._whole = bool(inputs) and all(
            a.ndim == ranks[name] + 1 for name, a in self._arrays.items()
        )
        if self._whole:
            self._steps = dict.fromkeys(self._arrays, 1)
            free = False
        else:
            first = {str(v.name): _first(v, dims) for v in inputs if ranks[str(v.name)]}
            self._steps = {name: size or 1 for name, size in first.items()}
            free = bool(first) and not any(first.values())
        self.loose = free
        self.size = 1 if self._whole else max(self._steps.values(), default=1)
        counts = [len(self._arrays[name]) // step for name, step in self._steps.items()]
        self.count = min(counts, default=0)

    def feeds(self, items: Items) -> list[dict[str, Array]]:
        """The feeds of these items: a single one when they are loose, else one for each."""
        if self.loose:
            return [self._feed(dict.fromkeys(self._steps, items))]
        found = []
        for item in items:
            rows = {
                name: np.arange(item * step, (item + 1) * step)
                for name, step in self._steps.items()
            }
            found.append(self._feed(rows))
        return found

    def _feed(self, rows: Mapping[str, Items]) -> dict[str, Array]:
        feed = {}
        for name, array in self._arrays.items():
            if self._whole:
                feed[name] = np.asarray(array[int(rows[name][0])])
            else:
                feed[name] = array[rows[name]] if name in rows else array
        return feed

    def rows(self, items: Items) -> Items:
        """The numbers of the samples of these items."""
        return (items[:, None] * self.size + np.arange(self.size)).ravel()


def _first(value: oir.Value, dims: Mapping[str, int]) -> int:
    """How many samples an input takes at once, 0 if any number."""
    assert value.shape is not None
    size = value.shape[0]
    if isinstance(size, int):
        return size
    return dims.get(str(size.value), 0)
