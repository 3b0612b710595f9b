"""Pruning trained ResNets on CIFAR-10, without any recovery: accuracy, cost and speed.

python -m benchmarks.cifar [--data FOLDER] [--jpeg] [--round-to N] [--threads N] [--json]

ResNet-20 and ResNet-56 (batch norm folded) are pruned with `secateur.prune` to a share of their
multiply-accumulates, by every criterion and scope, each with its certificate. Accuracy is top-1
on the 1,000 lossless test pictures (standard error about 0.9 points), with `--jpeg` also on all
10,000 as JPEG. Speed is ONNX Runtime's, original and pruned model in turns on the same pictures:
ratio of the medians and quartiles of the ratios of paired runs. Phases are seconds of one pruning.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy.typing as npt

Array = npt.NDArray[Any]
Scope = Literal["local", "global"]
DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
MODELS = ("resnet20", "resnet56")
SCOPES: tuple[Scope, ...] = ("local", "global")
CRITERIA = ("l1", "l2")
KEEP = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
PHASES = ("load", "analyse", "allocate", "rewrite", "certify")
CHUNK = 250


@dataclass(frozen=True)
class Pictures:
    """Normalised test pictures, float32[n, 3, 32, 32], and their labels, int64[n]."""

    images: Array
    labels: Array


@dataclass
class Row:
    """One model. ``keep`` is the share of MACs asked for; ``accuracy`` maps the kind of pictures
    to top-1 in percent; ``ms`` is the median time of one batch; ``seconds`` maps phases to time."""

    model: str
    keep: float = 1.0
    scope: Literal["local", "global", "-"] = "-"
    criterion: str = "-"
    macs: int = 0
    params: int = 0
    macs_kept: float = 1.0
    params_kept: float = 1.0
    accuracy: dict[str, float] = field(default_factory=dict)
    ms: float = 0.0
    speedup: float = 1.0
    speedup_low: float = 1.0
    speedup_high: float = 1.0
    seconds: dict[str, float] = field(default_factory=dict)
    note: str = ""


def load_pictures(data: Path, kind: str, limit: int | None = None) -> Pictures:
    """Test pictures through the loader in the data folder; ``kind`` is "png" or "jpeg"."""
    loader = _module(data / "cifar10" / "cifar10.py")
    images, labels = loader.load("test", kind, limit=limit)
    return Pictures(loader.normalize(images), labels)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accuracy(model: Any, pictures: Pictures) -> float:
    """Top-1 of an `onnx_ir.Model` in percent, in ONNX Runtime on all cores."""
    import onnxruntime as ort

    from secateur.ir.io import model_bytes

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model_bytes(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    right = 0
    for at in range(0, len(pictures.labels), CHUNK):
        (logits,) = session.run(None, {name: pictures.images[at : at + CHUNK]})
        right += int((logits.argmax(1) == pictures.labels[at : at + CHUNK]).sum())
    return 100 * right / len(pictures.labels)


def prune_row(
    path: Path,
    row: Row,
    pictures: dict[str, Pictures],
    *,
    threads: int,
    batch: int,
    min_seconds: float,
    round_to: int = 1,
) -> Row:
    """Fills in what one pruning gives; a target out of reach becomes a note."""
    import secateur
    from secateur.ir.errors import TargetError
    from secateur.ir.io import to_proto
    from secateur.runtime.benchmark import Speedup, benchmark

    assert row.scope != "-"
    try:
        result = secateur.prune(
            path,
            macs=row.keep,
            scope=row.scope,
            criterion=row.criterion,
            round_to=round_to,
            bench=False,
        )
    except TargetError as error:
        row.note = str(error)
        return row
    totals = result.report["totals"]
    row.macs, row.params = totals["macs"]["after"], totals["parameters"]["after"]
    row.macs_kept = row.macs / totals["macs"]["before"]
    row.params_kept = row.params / totals["parameters"]["before"]
    row.seconds = {phase: result.report["seconds"][phase] for phase in PHASES}
    row.accuracy = {kind: accuracy(result.model, found) for kind, found in pictures.items()}
    images = next(iter(pictures.values())).images
    name = str(result.original.graph.inputs[0].name)
    starts = range(0, len(images) - batch + 1, batch)[:8]
    feeds = [{name: images[at : at + batch]} for at in starts]
    before, after = benchmark(
        [to_proto(result.original), to_proto(result.model)],
        feeds,
        threads=threads,
        min_seconds=min_seconds,
    )
    ratio = Speedup.of(before, after)
    row.ms = after.p50
    row.speedup, row.speedup_low, row.speedup_high = ratio.ratio, ratio.low, ratio.high
    return row


def base_row(path: Path, model: str, pictures: dict[str, Pictures]) -> Row:
    """The model as it is."""
    from secateur.driver import api
    from secateur.runtime.cost import CostModel

    loaded = api.load(path)
    costs = CostModel(api.analyze(loaded)).costs()
    found = {kind: accuracy(loaded, some) for kind, some in pictures.items()}
    return Row(model, macs=costs.macs, params=costs.parameters, accuracy=found)


def measure(
    data: Path,
    models: Sequence[str] = MODELS,
    keep: Sequence[float] = KEEP,
    scopes: Sequence[Scope] = SCOPES,
    criteria: Sequence[str] = CRITERIA,
    kinds: Sequence[str] = ("png",),
    *,
    limit: int | None = None,
    threads: int = 1,
    batch: int = 1,
    min_seconds: float = 1.0,
    round_to: int = 1,
) -> list[Row]:
    """All rows, the unpruned model first; progress on stderr."""
    pictures = {kind: load_pictures(data, kind, limit) for kind in kinds}
    if batch > min(len(found.labels) for found in pictures.values()):
        raise ValueError(f"a batch of {batch} is more than there are pictures")
    rows = []
    for model in models:
        path = data / "cifar10_resnet" / f"{model}_cifar10.onnx"
        rows.append(base_row(path, model, pictures))
        for share in keep:
            for scope in scopes:
                for criterion in criteria:
                    row = Row(model, share, scope, criterion)
                    prune_row(
                        path,
                        row,
                        pictures,
                        threads=threads,
                        batch=batch,
                        min_seconds=min_seconds,
                        round_to=round_to,
                    )
                    rows.append(row)
                    print(f"{model} {share:g} {scope} {criterion}", file=sys.stderr, flush=True)
    return rows


def show(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    from benchmarks.table import markdown

    kinds = list(rows[0].accuracy) if rows else []
    header = ["model", "MACs asked", "scope", "criterion", "MACs", "params"]
    header += [f"top-1 {kind}" for kind in kinds]
    header += ["ms", "speed-up (quartiles)", "MACs ratio", *(f"{p} s" for p in PHASES)]
    cells = []
    for row in rows:
        start = [row.model, f"{row.keep:g}", row.scope, row.criterion]
        if row.note:
            cells.append([*start, "-", *[""] * (len(header) - len(start) - 1)])
            continue
        pruned = row.criterion != "-"
        cells.append(
            [
                *start,
                f"{row.macs / 1e6:.2f} M",
                f"{row.params / 1e3:.1f} k",
                *(f"{row.accuracy[kind]:.2f} %" for kind in kinds),
                f"{row.ms:.2f}" if pruned else "",
                f"{row.speedup:.2f} ({row.speedup_low:.2f}-{row.speedup_high:.2f})"
                if pruned
                else "",
                f"{1 / row.macs_kept:.2f}" if pruned else "",
                *(f"{row.seconds[phase]:.2f}" if pruned else "" for phase in PHASES),
            ]
        )
    notes = [
        f"- {row.model} {row.keep:g} {row.scope} {row.criterion}: {row.note}"
        for row in rows
        if row.note
    ]
    return "\n".join([markdown(header, cells), *([""] if notes else []), *notes])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Prune ResNets trained on CIFAR-10.")
    parser.add_argument("--data", type=Path, default=DATA, help=f"default: {DATA}")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--keep", nargs="+", type=float, default=list(KEEP), metavar="SHARE")
    parser.add_argument("--scopes", nargs="+", choices=SCOPES, default=list(SCOPES))
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    parser.add_argument("--jpeg", action="store_true", help="also on the 10,000 JPEG pictures")
    parser.add_argument("--limit", type=int, help="only so many pictures, the same of each class")
    parser.add_argument("--threads", type=int, default=1, help="of the timed sessions")
    parser.add_argument("--batch", type=int, default=1, help="pictures per timed run")
    parser.add_argument("--seconds", type=float, default=1.0, help="time per pair of models")
    parser.add_argument("--round-to", type=int, default=1, help="as of secateur prune")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if not (options.data / "cifar10" / "cifar10.py").is_file():
        parser.error(f"--data: no cifar10/cifar10.py in {options.data}")
    if importlib.util.find_spec("PIL") is None:
        parser.error("the pictures are PNG and JPEG files: pip install pillow")
    begin = time.perf_counter()
    rows = measure(
        options.data,
        options.models,
        options.keep,
        options.scopes,
        options.criteria,
        ("png", "jpeg") if options.jpeg else ("png",),
        limit=options.limit,
        threads=options.threads,
        batch=options.batch,
        min_seconds=options.seconds,
        round_to=options.round_to,
    )
    from benchmarks.table import environment, environment_line

    if options.json:
        found = {"environment": environment(), "rows": [asdict(row) for row in rows]}
        print(json.dumps(found, indent=1))
        return
    print(environment_line())
    rounding = f"channels rounded to {options.round_to}"
    print(f"timed with {options.threads} thread(s), batch {options.batch}; {rounding}\n")
    print(show(rows))
    print(f"\n{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
