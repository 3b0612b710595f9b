"""Models with a task of their own, pruned further and further: speed-up and what the task loses.

Calibration is of the kind that the model was trained on, never labelled: 3,000 training digits
(MNIST), the 256 samples of the example, altered copies of the spoken words (other shifts and noise
than those it is measured on, but of the same 42 clips), and crops and mirror images of the eight
pictures with faces, on which it is also measured: there are no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cifar import Array, _module
from benchmarks.rows import Key, Row, clock

TARGETS = (1.25, 1.5, 2.0, 2.5, 3.3, 4.0)
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ALLOWED = {"face": 100 / 87}
"""Points that a task may lose, where it is not one: of the faces, one."""
CROPS = 10
TIMED = 16


@dataclass(frozen=True)
class Task:
    """A model file, ``calibration`` arrays for it, and the ``score`` of a file in percent."""

    path: Path
    calibration: Callable[[], dict[str, Array]]
    score: Callable[[Path], float]


def task(name: str, data: Path) -> Task:
    """The task of this name, with its files in the data folder."""
    return {"mnist": _mnist, "digits": _digits, "kws": _kws, "face": _face}[name](data)


def _mnist(data: Path) -> Task:
    loader = _module(data / "mnist" / "mnist.py")

    def digits() -> dict[str, Array]:
        return {"Input3": loader.load("train")[0][:, None].astype(np.float32)}

    return Task(
        data / "mnist" / "mnist.onnx", digits, lambda path: 100 * float(loader.accuracy(path))
    )


def _digits(_: Path) -> Task:
    evaluate = _module(EXAMPLES / "evaluate.py")
    test = EXAMPLES / "digits_test.npz"

    def samples() -> dict[str, Array]:
        with np.load(EXAMPLES / "digits_calibration.npz") as arrays:
            return {"image": arrays["image"]}

    return Task(
        EXAMPLES / "digits.onnx", samples, lambda path: 100 * float(evaluate.accuracy(path, test))
    )


def _kws(data: Path) -> Task:
    loader = _module(data / "kws" / "kws.py")

    def clips() -> dict[str, Array]:
        audio, _ = loader.load(copies=10, seed=1)
        return {"audio": audio[np.random.default_rng(0).permutation(len(audio))]}

    path = data / "kws" / "kwt1.onnx"
    return Task(path, clips, lambda path: 100 * float(loader.accuracy(path, copies=20)))


def _face(data: Path) -> Task:
    loader = _module(data / "face" / "face.py")
    path = data / "face" / "version-RFB-320_without_postprocessing.onnx"
    found = {name: loader.Detector(path)(picture) for name, picture in loader.pictures()}

    def crops() -> dict[str, Array]:
        rng, arrays = np.random.default_rng(0), []
        for _, picture in loader.pictures():
            for number in range(CROPS):
                share = 1.0 if number == 0 else rng.uniform(0.4, 1.0)
                width, height = (int(side * share) for side in picture.size)
                left = rng.integers(picture.size[0] - width + 1)
                top = rng.integers(picture.size[1] - height + 1)
                part = picture.crop((left, top, left + width, top + height)).convert("RGB")
                x = (np.asarray(part.resize((320, 240)), np.float32) - 127) / 128
                x = x.transpose(2, 0, 1)
                arrays += [x, x[..., ::-1]]
        return {"input": np.stack([arrays[k] for k in rng.permutation(len(arrays))])}

    def again(other: Path) -> float:
        detector, hits = loader.Detector(str(other)), 0
        for name, picture in loader.pictures():
            boxes = detector(picture)
            hits += sum(
                bool(len(boxes) and loader.iou(box, boxes).max() >= 0.5) for box in found[name]
            )
        return 100 * hits / sum(map(len, found.values()))

    return Task(path, crops, again)


def measure(key: Key, data: Path, work: Path, steps: int | None, threads: int) -> Row:
    """One model at one target: MACs, the task's score before and after, and the paired speed-up.
    The method of the key is what channels are rounded to: ``round-to-8``."""
    import secateur

    name, target, method = key
    round_to = int(method.rpartition("-")[2])
    chosen = task(name, data)
    calibration = chosen.calibration()
    count = len(next(iter(calibration.values())))
    options = {"threads": threads, "steps": steps, "samples": count}
    row = Row(name, target, method, options=options)
    try:
        with clock(row):
            result = secateur.prune(
                chosen.path,
                macs=1 / target,
                calibration=calibration,
                round_to=round_to,
                steps=steps,
                threads=threads,
                bench=False,
            )
    except secateur.TargetError as error:
        row.found["note"] = str(error)
        return row
    output = work / f"{name}-{target:g}-{method}.onnx"
    result.save(output)
    macs = result.report["totals"]["macs"]
    row.ratio = macs["before"] / macs["after"]
    row.accuracy = {"base": chosen.score(chosen.path), "pruned": chosen.score(output)}
    few = {name: array[:TIMED] for name, array in calibration.items()}
    timed = secateur.bench(chosen.path, output, calibration=few, threads=1, min_seconds=4.0)
    speedup = timed.speedup
    row.found |= {
        "ms": timed.candidate.p50,
        "speedup": speedup.ratio,
        "low": speedup.low,
        "high": speedup.high,
    }
    return row


def show(rows: Sequence[Row]) -> str:
    """All rows as a table; the fastest model of each task that loses at most a point is marked."""
    from benchmarks.table import markdown

    best: dict[str, Row] = {}
    for row in rows:
        ahead = best.get(row.model)
        if row.accuracy and _lost(row) <= ALLOWED.get(row.model, 1.0) + 1e-9:
            faster = ahead is None or row.found["speedup"] > ahead.found["speedup"]
            best[row.model] = row if faster or ahead is None else ahead
    header = [
        "model, target, channels",
        "MACs",
        "base",
        "pruned",
        "speed-up (quartiles)",
        "s",
        "fastest",
    ]
    cells = []
    for row in rows:
        start = f"{row.model}, {row.target:g}x, {row.method}"
        if not row.accuracy:
            cells.append([start, "", "", "", "out of reach", "", ""])
            continue
        f: dict[str, Any] = row.found
        cells.append(
            [
                start,
                f"{row.ratio:.2f}x",
                f"{row.accuracy['base']:.2f}",
                f"{row.accuracy['pruned']:.2f}",
                f"{f['speedup']:.2f} ({f['low']:.2f}-{f['high']:.2f})",
                f"{row.wall:.0f}",
                "yes" if best.get(row.model) is row else "",
            ]
        )
    return markdown(header, cells)


def _lost(row: Row) -> float:
    return row.accuracy["base"] - row.accuracy["pruned"]
