"""`secateur.pack_calibration` of what Python yields."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from secateur import DataError, UsageError

from .packing_runs import Array, packed, taking

VECTOR = taking(x=("FLOAT", ["N", 3]))
TWO = taking(ids=("INT64", ["N", 5]), mask=("BOOL", ["N", 5]))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


MODULE = """
import numpy as np
READ = []
def arrays():
    for k in range(3):
        READ.append(k)
        yield np.full(3, k)
rows = [[0, 1, 2], [3, 4, 5]]
class Data:
    @staticmethod
    def pairs():
        yield np.arange(5), np.arange(5) > 2
    def __iter__(self):
        yield {"ids": [9] * 5, "mask": [True] * 5}
data = Data()
def late():
    import late_helper
    yield late_helper.row
def fails():
    yield np.zeros(3)
    raise ValueError("no more\\ndata")
def nothing():
    return []
number = 3
"""


def test_python_by_name(folder: Path) -> None:
    Path("own_samples.py").write_text(MODULE)
    arrays, _ = packed("own_samples:arrays", VECTOR)
    assert arrays["x"].tolist() == [[0] * 3, [1] * 3, [2] * 3]
    arrays, _ = packed("own_samples:rows", VECTOR)
    assert arrays["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    Path("late_helper.py").write_text("row = [7, 8, 9]")
    arrays, _ = packed("own_samples:late", VECTOR)
    assert arrays["x"].tolist() == [[7, 8, 9]]
    arrays, _ = packed("own_samples:Data.pairs", TWO)
    assert arrays["ids"].tolist() == [[0, 1, 2, 3, 4]]
    assert arrays["mask"].tolist() == [[False, False, False, True, True]]
    arrays, _ = packed("own_samples:data", TWO)
    assert arrays["ids"].tolist() == [[9] * 5]
    for source, error, words in (
        ("own_samples:none", DataError, "cannot import own_samples:none: AttributeError"),
        ("no_such_module:f", DataError, "cannot import no_such_module:f: ModuleNotFoundError"),
        ("own_samples:fails", DataError, "own_samples:fails failed after 1 sample: ValueError"),
        ("own_samples:nothing", DataError, "own_samples:nothing: holds no samples"),
        ("own_samples:number", DataError, "own_samples:number failed after 0 samples: TypeError"),
        ("own_samples:Data.pairs", DataError, r"item 0 has 2 arrays for 1 input \(x\)"),
    ):
        with pytest.raises(error, match=words) as caught:
            packed(source, VECTOR)
        assert "\n" not in str(caught.value)


def test_no_more_is_asked_for_than_is_packed() -> None:
    Path("more_samples.py").write_text(MODULE)
    packed("more_samples:arrays", VECTOR, limit=2)
    assert sys.modules["more_samples"].READ == [0, 1]


def test_python_beside_files() -> None:
    ids = np.arange(10).reshape(2, 5)
    np.save("ids.npy", ids)

    def masks(count: int) -> Iterator[dict[str, Array]]:
        for _ in range(count):
            yield {"mask": np.ones(5, np.bool_)}

    arrays, _ = packed(["ids=ids.npy", masks(2)], TWO)
    np.testing.assert_array_equal(arrays["ids"], ids)
    assert arrays["mask"].all()
    for count, words in ((1, "ends after 1"), (3, "goes on after 2")):
        with pytest.raises(DataError, match=words):
            packed(["ids=ids.npy", masks(count)], TWO)
    with pytest.raises(UsageError, match="comes in its own order"):
        packed(["ids=ids.npy", masks(2)], TWO, shuffle=True)


def test_a_file_of_that_name_goes_before_a_module() -> None:
    Path("a:b").mkdir()
    with pytest.raises(DataError, match="a:b: holds no pictures"):
        packed("a:b")
