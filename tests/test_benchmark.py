from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from secateur.ir.errors import CertificateError, UsageError
from secateur.runtime import benchmark as module
from secateur.runtime.benchmark import Speedup, Timing, benchmark


def product(n: int) -> onnx.ModelProto:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]>
        g (float[64, 4] x) => (float[64, 4] y) { a = MatMul(x, u)  b = MatMul(a, v)
            y = MatMul(b, w) }"""
    )
    for name, shape in (("u", (4, n)), ("v", (n, n)), ("w", (n, 4))):
        weight = np.ones(shape, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    return model


FEED = {"x": np.ones((64, 4), np.float32)}


def test_more_work_takes_longer() -> None:
    options: dict[str, Any] = {"threads": 1, "warmup": 1, "min_runs": 5, "min_seconds": 0}
    large, small = benchmark([product(1024), product(8)], [FEED], **options)
    assert large.runs == small.runs == 5
    assert large.p25 <= large.p50 <= large.p75
    assert Speedup.of(large, small).ratio > 2  # the work differs by a factor of thousands


def test_models_take_turns_in_alternating_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Any, Any]] = []
    monkeypatch.setattr(module, "make_session", lambda model, threads: model)
    monkeypatch.setattr(module, "run", lambda session, feed: ran.append((session, feed)))
    done: list[float] = []
    feeds: Any = ["f", "g"]
    timings = benchmark(
        [b"A", b"B"], feeds, warmup=0, min_runs=4, min_seconds=0, progress=done.append
    )
    assert [session for session, _ in ran] == [b"A", b"B", b"B", b"A"] * 2
    assert [feed for _, feed in ran] == ["f", "f", "g", "g"] * 2
    assert [timing.runs for timing in timings] == [4, 4]
    assert done == sorted(done) and done[-1] == 1.0


def test_the_longest_time_ends_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(float(i) for i in range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    (timing,) = benchmark([product(4)], [FEED], min_runs=10**6, max_seconds=8)
    assert timing.runs == 3  # three readings of the clock per round of one model
    assert timing.p50 == 1000.0  # one tick is one second


def test_quartiles_and_ratio() -> None:
    slow, fast = Timing.of([4.0, 8.0, 6.0]), Timing.of([1.0, 2.0, 3.0])
    assert (slow.p25, slow.p50, slow.p75, slow.iqr) == (5.0, 6.0, 7.0, 2.0)
    speedup = Speedup.of(slow, fast)
    assert speedup == Speedup(ratio=4.0, low=3.0, high=4.0)  # pairs: 4, 4, 2


def test_errors() -> None:
    with pytest.raises(UsageError):
        benchmark([], [FEED])
    with pytest.raises(UsageError):
        benchmark([product(4)], [])
    with pytest.raises(UsageError):
        Timing.of([])
    with pytest.raises(UsageError):
        Speedup.of(Timing.of([1.0]), Timing.of([1.0, 2.0]))
    with pytest.raises(CertificateError):
        benchmark([product(4)], [{"x": np.ones((1, 1), np.float32)}], warmup=1)
