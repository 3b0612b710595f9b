"""`secateur.sensitivity`: from model and data to a table of drifts, over processes or a cluster."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import onnx_ir as oir

from ..ir.analysis import Analysis
from ..ir.errors import UsageError
from ..ir.io import digest, load_model, model_files, save_model
from ..ir.tensors import all_tensors
from ..passes import computed_weights as _analysis
from ..passes.base import PassContext
from ..passes.sensitivity import Row, Sweep, cases, rows
from ..runtime.candidates import Candidate, Measured, Study, forget, measure, measure_in
from ..runtime.journal import Journal
from ..runtime.parallel import in_processes, usable_cores
from ..runtime.spool import npz_chunks
from .context import Calibration, Progress, pass_context

if TYPE_CHECKING:
    from ..runtime.session import Array
    from .api import Source

Metric = Literal["error", "mse", "cosine", "top1"]
MAX_JOBS = 1024


@dataclass(frozen=True)
class Sensitivity:
    """The drift of the outputs by group and share, the most sensitive group first.

    ``metric`` is what the table is sorted by and the plot shows (`secateur.runtime.drift` has the
    formulas); ``samples`` calibration samples were run at sizes ``dims``; ``measured`` candidates
    were run now, ``resumed`` were known from before.
    """

    rows: tuple[Row, ...]
    metric: Metric
    samples: int
    dims: Mapping[str, int]
    measured: int
    resumed: int

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values: the same for a run at once and one in parts."""
        return {
            "metric": self.metric,
            "samples": self.samples,
            "dims": dict(self.dims),
            "rows": [_row(row) for row in self.rows],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table as .csv, .md or .json. Raises UsageError for another suffix or when it
        cannot be written."""
        from .sensitivity_table import write_table

        write_table(self, Path(path))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes a heat map of groups and shares as .svg, .png or .pdf. Raises UsageError for
        another suffix, without matplotlib, or when it cannot be written."""
        from .sensitivity_plot import write_plot

        write_plot(self, Path(path))


def _row(row: Row) -> dict[str, Any]:
    data = asdict(row)
    drift = data.pop("drift")
    outputs, failure = data.pop("outputs"), data.pop("failure")
    return {**data, **drift, "outputs": outputs, "failure": failure}


def sensitivity(
    source: Source,
    *,
    calibration: Calibration,
    ratios: Sequence[float] = (0.1, 0.25, 0.5, 0.75),
    criterion: str = "l2",
    metric: Metric = "error",
    inexact: bool = False,
    groups: Sequence[str] = (),
    protect: Sequence[str] = (),
    carrier: Literal["heads", "head-dim"] = "heads",
    dims: Mapping[str, int] | None = None,
    samples: int = 64,
    jobs: int = 1,
    threads: int = 0,
    scheduler: str | None = None,
    work: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measures, for every group and every share in ``ratios``, how far the outputs move on
    calibration data when the group alone loses its least important units.

    ``jobs`` processes share the work (0: one for each core, as far as memory goes), each with
    ``threads`` ONNX Runtime threads (0: the cores divided by the jobs); or ``scheduler`` is the
    address of a Dask scheduler whose workers do it. With a folder ``work``, results are kept there
    as they come, and a run that was cut short goes on from them. ``groups`` are globs of group
    names.

    Raises the errors of `secateur.ir.errors`; see docs/cli.md.
    """
    sweep = _sweep(ratios, criterion, inexact, groups)
    if not 0 <= jobs <= MAX_JOBS:
        raise UsageError(f"`jobs` must be 0 to {MAX_JOBS}, not {jobs}")
    if samples < 1:
        raise UsageError(f"`samples` must be at least 1, not {samples}")
    model = load_model(source)
    context = pass_context(model, dims, calibration, threads, 0, progress)
    assert context.calibration is not None
    context.progress("analyse", None)
    analysis = _analyze(model, context, protect, carrier)
    _check_metric(analysis, metric)
    entries = cases(analysis, sweep)
    unique = {case.candidate.key: case.candidate for case in entries}
    cores = usable_cores()
    jobs = min(jobs or affordable(model, cores), len(unique))
    binding = dict(analysis.facts[0].binding)
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        arrays = _stored(context.calibration, max(samples, *_steps(model, binding)))
        study = Study(
            _model_file(source, model, Path(folder)),
            _data_file(arrays, Path(folder)),
            tuple(sorted(binding.items())),
            samples,
            threads or (1 if scheduler else max(cores // jobs, 1)),
        )
        journal = (
            None if work is None else Journal(Path(work), "sensitivity", _inputs(study, arrays))
        )
        with nullcontext() if journal is None else closing(journal):
            known = {} if journal is None else journal.found
            done = {k: Measured.from_json(known[k]) for k in unique.keys() & known.keys()}
            resumed = len(done)
            left = [candidate for key, candidate in unique.items() if key not in done]
            context.progress("measure", resumed / len(unique))
            with closing(_measured(study, left, jobs, scheduler)) as results:
                for candidate, result in results:
                    done[candidate.key] = result
                    if journal is not None:
                        journal.add(candidate.key, result.to_json())
                    context.progress("measure", len(done) / len(unique))
    count = min(samples, min((len(a) for a in arrays.values() if a.ndim), default=1))
    return Sensitivity(
        tuple(rows(entries, done, metric)), metric, count, binding, len(left), resumed
    )


def affordable(model: oir.Model, cores: int) -> int:
    """One process a core, as far as half of the memory holds them: each needs its weights about
    four times (the original, a masked copy, its message and ONNX Runtime's own)."""
    weights = sum(t.nbytes for t in all_tensors(model) if t.dtype != oir.DataType.STRING)
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not every system says
        return cores
    return max(min(cores, memory // 2 // max(4 * weights, 1)), 1)


def _sweep(ratios: Sequence[float], criterion: str, inexact: bool, groups: Sequence[str]) -> Sweep:
    try:
        return Sweep(
            tuple(ratios),
            criterion,
            inexact,
            (groups,) if isinstance(groups, str) else tuple(groups),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _analyze(
    model: oir.Model,
    context: PassContext,
    protect: Sequence[str],
    carrier: Literal["heads", "head-dim"],
) -> Analysis:
    from ..runtime.observe import observer

    return _analysis.analyze(
        model,
        context.dims,
        protect=(protect,) if isinstance(protect, str) else tuple(protect),
        prefer=carrier,
        observe=observer(model, context.calibration),
    )


def _check_metric(analysis: Analysis, metric: Metric) -> None:
    """Finds out before the work whether any output can have the metric."""
    from ..runtime.drift import METRICS

    if metric not in METRICS:
        raise UsageError(f"unknown metric '{metric}'; known: {', '.join(METRICS)}")
    types = [analysis.facts[0].types.get(str(v.name)) for v in analysis.model.graph.outputs]
    floats = [t for t in types if t is not None and oir.DataType(t[0]).is_floating_point()]
    if None in types:
        return
    if metric == "top1":
        if len(floats) == len(types) and not any(len(t[1]) == 2 for t in floats):
            raise UsageError("no output is a table (batch, classes): use another `metric`")
    elif not floats:
        raise UsageError(f"no output is of floats, so none has '{metric}': use `metric` top1")


def _steps(model: oir.Model, binding: Mapping[str, int]) -> list[int]:
    """How many samples the inputs take at a time, where that is known; at least one number."""
    firsts = [v.shape[0] for v in model.graph.inputs if v.shape is not None and len(v.shape)]
    return [1, *(size for size in firsts if isinstance(size, int)), *binding.values()]


def _stored(arrays: Mapping[str, Array], count: int) -> dict[str, Array]:
    """The first samples as a calibration file holds them: without bfloat16 and objects."""
    kinds = {"O": np.str_, "bfloat16": np.float32}
    found = {}
    for name, array in arrays.items():
        kind = kinds.get(array.dtype.kind, kinds.get(array.dtype.name))
        cut = array[:count] if array.ndim else array
        found[name] = cut if kind is None else cut.astype(kind)
    return found


def _model_file(source: Source, model: oir.Model, folder: Path) -> str:
    if not isinstance(source, (onnx.ModelProto, oir.Model)):
        return str(Path(source).absolute())
    save_model(model, folder / "model.onnx")
    return str(folder / "model.onnx")


def _data_file(arrays: Mapping[str, Array], folder: Path) -> str:
    path = folder / "calibration.npz"
    with path.open("wb") as file:
        file.writelines(npz_chunks(arrays))
    return str(path)


def _inputs(study: Study, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """What a measurement depends on besides its candidate, as JSON values."""
    data = hashlib.sha256()
    for name in sorted(arrays):
        data.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        data.update(arrays[name].tobytes())
    return {
        "model": digest(study.model),
        "calibration": data.hexdigest(),
        "dims": [list(pair) for pair in study.dims],
        "samples": study.samples,
    }


def _measured(
    study: Study, candidates: Sequence[Candidate], jobs: int, scheduler: str | None
) -> Generator[tuple[Candidate, Measured], None, None]:
    if not candidates:
        return
    if scheduler is None:
        try:
            yield from in_processes(partial(measure, study), candidates, jobs)
        finally:
            forget()
        return
    from ..runtime.cluster import on_cluster, pack

    path = Path(study.model)
    files = {
        f"model/{file.relative_to(path.parent).as_posix()}": file
        for file in model_files(path, load_model(path))
    }
    sent = replace(study, model=f"model/{path.name}", calibration="calibration.npz")
    function: Callable[[Path, Candidate], Measured] = partial(measure_in, sent)
    parcel = pack(files | {"calibration.npz": Path(study.calibration)})
    yield from on_cluster(scheduler, parcel, function, candidates, forget)
