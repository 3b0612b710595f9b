"""Checkpoints come back, and those of others and damaged ones are refused."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.ir.errors import DataError, UsageError
from secateur.passes.distill_checkpoint import Checkpoint, State, fingerprint

from .pass_runs import normal


def test_a_checkpoint_comes_back(tmp_path: object) -> None:
    mark = fingerprint({"w": normal(2, 3)}, {"rate": 1})
    state = State(3, 1.5, 0.25, 1.0, 2, 0.5, [(0, 1.0), (3, 0.25)], {"now/0": normal(2, 3)})
    checkpoint = Checkpoint(f"{tmp_path}/new/folder", mark)
    assert checkpoint.read([(2, 3)]) is None
    checkpoint.write(state)
    found = checkpoint.read([(2, 3)])
    assert found is not None
    np.testing.assert_array_equal(found.arrays.pop("now/0"), state.arrays.pop("now/0"))
    assert found == state
    assert [p.name for p in checkpoint.path.parent.iterdir()] == ["distill.npz"]


def test_checkpoints_of_others_are_refused(tmp_path: object) -> None:
    folder, arrays = str(tmp_path), {"w": normal(2, 3)}
    Checkpoint(folder, fingerprint(arrays, {"rate": 1})).write(State())
    for other in (fingerprint(arrays, {"rate": 2}), fingerprint({"w": normal(2, 3, seed=1)}, {})):
        with pytest.raises(UsageError, match="of another model, other data or other options"):
            Checkpoint(folder, other).read([])


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip file"])
def test_a_damaged_checkpoint_is_refused(tmp_path: object, content: bytes) -> None:
    checkpoint = Checkpoint(str(tmp_path), "mark")
    checkpoint.path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read: .*; delete it"):
        checkpoint.read([])


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path: object) -> None:
    checkpoint = Checkpoint(str(tmp_path), "mark")
    checkpoint.write(State(arrays={"now/0": normal(2, 3)}))
    for shapes in ([], [(3, 2)]):
        with pytest.raises(DataError, match="is damaged"):
            checkpoint.read(shapes)
