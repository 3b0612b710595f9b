"""Accuracy after pruning, recovery and distillation, beside Torch-Pruning, row by row.

python -m benchmarks.accuracy [--models M ...] [--targets X ...] [--methods NAME ...] [--table]

Rows that are not there yet are measured and appended to WORK/rows.jsonl, models are kept beside
it, and the tables are printed from what is there. A row is a model, a target and a method:

- ``closed``: `secateur.prune` to so many times fewer MACs on the 4,000 lossless training pictures
- ``one-shot``: the same in one step on 1,000 of them, for its seconds
- ``distill``: the closed row's model after ``--minutes`` of distillation
- ``peer``: Torch-Pruning's best of all its criteria, without training
- ``peer-finetuned``: that model after as many minutes of training with labels
- ``round-to-8``: a model other than the ResNets, at a number of targets (see `benchmarks.tasks`)

Peers need torch and torch-pruning, distillation needs torch. Accuracy is top-1 on the 1,000
lossless test pictures and on the 10,000 as JPEG.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Key, Row, Rows, clock

DATA = Path("..") / "shared" / "data"
WORK = Path("build") / "accuracy"
RESNETS = {"resnet56": (1.5, 2.11, 2.55), "resnet20": (1.5,)}
TASKS = ("mnist", "digits", "face", "kws")
METHODS = ("closed", "one-shot", "distill", "peer", "peer-finetuned")
CRITERIA_SHOWN = 3


def measure(key: Key, rows: Rows, options: argparse.Namespace) -> Row:
    """One row. Raises FileNotFoundError for one that builds on a row that is not there."""
    model, target, method = key
    if model in TASKS:
        from benchmarks import tasks

        return tasks.measure(key, options.data, options.work, options.steps, options.threads)
    row = Row(model, target, method, options={"threads": options.threads})
    if method.startswith("peer"):
        return _peer_row(row, rows, options)
    return _own_row(row, rows, options)


def _own_row(row: Row, rows: Rows, options: argparse.Namespace) -> Row:
    from benchmarks import cifar_recovery
    from secateur.driver.recipe import STEPS

    path = options.data / "cifar10_resnet" / f"{row.model}_cifar10.onnx"
    start = _file(options.work, row.model, row.target, "closed")
    few = row.method == "one-shot"
    count = 1000 if few else cifar_recovery.TRAINING
    images, _ = cifar_recovery.training_pictures(options.data, count)
    row.options["pictures"] = len(images)
    if row.method == "distill":
        closed = _needed(rows, (row.model, row.target, "closed"), start)
        row.options |= {"minutes": options.minutes, "closed": closed.wall}
        with clock(row):
            result = cifar_recovery.distilled(start, path, images, options.minutes, options.threads)
        row.found["distill"] = result.report["passes"][0].get("statistics", {})
    else:
        steps, flips = (1, False) if few else (options.steps or STEPS, options.flips)
        row.options |= {"steps": steps, "flips": flips}
        with clock(row):
            result = cifar_recovery.closed(
                path, row.target, images, steps=steps, flips=flips, threads=options.threads
            )
    result.save(_file(options.work, *row.key))
    row.accuracy = _accuracy(result.model, options.data)
    row.ratio = cifar_recovery.macs_ratio(path, result.model)
    return row


def _peer_row(row: Row, rows: Rows, options: argparse.Namespace) -> Row:
    import torch

    from benchmarks import cifar_peer, cifar_recovery
    from benchmarks.cifar import load_pictures
    from benchmarks.cifar_torch import export

    if options.threads:
        torch.set_num_threads(options.threads)
    folder = options.data / "cifar10_resnet"
    path = folder / f"{row.model}_cifar10_bn.onnx"
    images, labels = cifar_recovery.training_pictures(options.data)
    start = _file(options.work, row.model, row.target, "peer")
    with clock(row):
        if row.method == "peer":
            test = load_pictures(options.data, "png")
            seen = images[: cifar_peer.SEEN]
            criteria, where = options.criteria or cifar_peer.CRITERIA, options.where
            row.options |= {"criteria": list(criteria), "where": where}
            found = cifar_peer.best(path, row.target, seen, test, start, criteria, where)
            row.found = dict(sorted(found.items(), key=lambda item: -item[1]))
        else:
            before = _needed(rows, (row.model, row.target, "peer"), start)
            module = torch.load(start.with_suffix(".pt"), weights_only=False)
            minutes = options.minutes
            row.options |= {"minutes": minutes, "criterion": next(iter(before.found))}
            row.found["epochs"] = cifar_peer.finetune(module, images, labels, minutes)
            export(module, _file(options.work, *row.key))
    made = _file(options.work, *row.key)
    row.accuracy = _accuracy(made, options.data)
    row.ratio = cifar_recovery.macs_ratio(folder / f"{row.model}_cifar10.onnx", made)
    return row


def _accuracy(model: Any, data: Path) -> dict[str, float]:
    from benchmarks.cifar import accuracy, load_pictures
    from secateur.driver.api import load

    return {kind: accuracy(load(model), load_pictures(data, kind)) for kind in ("png", "jpeg")}


def _needed(rows: Rows, key: Key, file: Path) -> Row:
    row = rows.read().get(key)
    if row is None or not file.exists():
        raise FileNotFoundError(f"{key[2]} of {key[0]} at {key[1]:g} must be measured first")
    return row


def _file(work: Path, model: str, target: float, method: str) -> Path:
    return work / f"{model}-{target:g}-{method}.onnx"


def keys(options: argparse.Namespace) -> list[Key]:
    """The rows that are asked for."""
    from benchmarks import tasks

    found: list[Key] = []
    for model in options.models:
        if model in RESNETS:
            targets = options.targets or RESNETS[model]
            found += [(model, float(t), method) for method in options.methods for t in targets]
        else:
            targets = options.targets or tasks.TARGETS
            found += [(model, float(t), f"round-to-{n}") for n in options.round_to for t in targets]
    return found


def show(rows: Sequence[Row]) -> str:
    """The tables of the ResNets and of the other models."""
    from benchmarks.table import markdown

    header = ["model, target", "method", "MACs", "png", "jpeg", "wall s", "CPU s", "load", "how"]
    cells = [
        [
            f"{row.model}, {row.target:g}x",
            row.method,
            f"{row.ratio:.2f}x",
            *(f"{row.accuracy[kind]:.2f}" for kind in ("png", "jpeg")),
            f"{row.wall:.0f}",
            f"{row.cpu:.0f}",
            "-".join(f"{load:.0f}" for load in row.load),
            _how(row),
        ]
        for row in rows
        if row.model in RESNETS
    ]
    others = [row for row in rows if row.model in TASKS]
    lines = [markdown(header, cells)] if cells else []
    if others:
        from benchmarks import tasks

        lines += [tasks.show(others)]
    return "\n\n".join(lines)


def _how(row: Row) -> str:
    if row.method == "peer":
        return "; ".join(f"{n} {v:.1f}" for n, v in [*row.found.items()][:CRITERIA_SHOWN])
    skipped = ("closed",)
    return ", ".join(f"{n} {v}" for n, v in row.options.items() if n not in skipped)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Accuracy after pruning and recovery.")
    parser.add_argument("--data", type=Path, default=DATA, help=f"default: {DATA}")
    parser.add_argument("--work", type=Path, default=WORK, help=f"default: {WORK}")
    parser.add_argument("--models", nargs="+", choices=[*RESNETS, *TASKS], default=[*RESNETS])
    parser.add_argument("--targets", nargs="+", type=float, metavar="TIMES", help="fewer MACs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--minutes", type=float, default=20.0, help="of training")
    parser.add_argument("--steps", type=int, help="of pruning; default: the package's")
    parser.add_argument("--flips", action="store_true", help="calibrate with mirror images too")
    parser.add_argument("--criteria", nargs="+", help="the peer's; default: all of them")
    parser.add_argument("--where", nargs="+", default=["inside", "all"], help="the peer prunes")
    parser.add_argument(
        "--round-to", nargs="+", type=int, default=[8], help="channels of the others"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--again", action="store_true", help="measure rows that are there anew")
    parser.add_argument("--table", action="store_true", help="print what is there, measure nothing")
    options = parser.parse_args(arguments)
    rows = Rows(options.work / "rows.jsonl")
    if not options.table:
        if not (options.data / "cifar10" / "cifar10.py").is_file():
            parser.error(f"--data: no cifar10/cifar10.py in {options.data}")
        if importlib.util.find_spec("PIL") is None:
            parser.error("the pictures are PNG and JPEG files: pip install pillow")
        options.work.mkdir(parents=True, exist_ok=True)
        for key in keys(options):
            if options.again or key not in rows.read():
                print(*key, file=sys.stderr, flush=True)
                rows.add(measure(key, rows, options))
    print(show(list(rows.read().values())))


if __name__ == "__main__":
    main()
