"""The plot of `secateur sensitivity`: a heat map of groups and shares, readable with hundreds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..ir.errors import UsageError
from .sensitivity_table import LABELS, check_suffix, pivot, shown

if TYPE_CHECKING:
    from .sensitivity import Sensitivity

SUFFIXES = (".svg", ".png", ".pdf")
NAMED = 80
"""With more groups than this, only every second, third, … is named."""


def check_plot(path: Path) -> None:
    """Finds out before the work whether a plot can be made. Raises UsageError."""
    check_suffix(path, SUFFIXES)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(
            "a plot needs the package matplotlib: pip install 'secateur[plots]'"
        ) from None


def write_plot(result: Sensitivity, path: Path) -> None:
    """Writes the heat map, whole or not at all. The same table gives the same bytes."""
    check_plot(path)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    from ..ir.files import write_files

    groups = pivot(result)
    ratios = sorted({row.ratio for row in result.rows})
    values = np.array(
        [[_value(getattr(row.drift, result.metric)) for row in entries] for entries in groups]
    )
    # Drifts differ by powers of ten; what is below a millionth of the largest is as good as none.
    top = float(np.nanmax(values, initial=0.0)) or 1.0
    low = max(float(np.min(values, where=values > 0, initial=top)), top * 1e-6)
    norm = LogNorm(low, top if low < top else 2 * low)
    step = -(-len(groups) // NAMED)
    height = 1.2 + 0.22 * min(len(groups), NAMED)
    figure = Figure(figsize=(4.5 + 0.8 * len(ratios), height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shades = matplotlib.colormaps["viridis"].with_extremes(bad="0.8")
    colours = np.maximum(values, low)
    image = axes.imshow(colours, norm=norm, cmap=shades, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(ratios)), [f"{ratio:.4g}" for ratio in ratios])
    named = range(0, len(groups), step)
    axes.set_yticks(named, [_short(groups[k][0].group) for k in named], fontsize=7)
    axes.set_xlabel("share of units removed")
    if step == 1:
        for k, entries in enumerate(groups):
            for column, row in enumerate(entries):
                dark = norm(colours[k, column]) < 0.6  # not so where there is no number
                colour = "white" if dark else "black"
                text = shown(row, result.metric)
                axes.text(column, k, text, ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(image, ax=axes, label=LABELS[result.metric])
    buffer = io.BytesIO()
    kind = path.suffix.lower()[1:]
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    with matplotlib.rc_context({"svg.hashsalt": "secateur", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=kind, metadata=dates[kind], dpi=150)
    write_files([(path, [buffer.getvalue()])])


def _value(value: float | None) -> float:
    return np.nan if value is None else value


def _short(name: str) -> str:
    return name if len(name) <= 48 else f"{name[:20]}…{name[-27:]}"
