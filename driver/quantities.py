"""Numbers as people read them: three digits and a unit."""

from __future__ import annotations

from collections.abc import Sequence


def count(value: float) -> str:
    """One number, as `counts` has it."""
    return counts(value)[0]


def counts(*values: float) -> list[str]:
    """Numbers as people read them, all in the unit that fits the largest."""
    return _in_one_unit(values, ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1, "")))


def size(value: float) -> str:
    """One number of bytes, as `sizes` has it."""
    return sizes(value)[0]


def sizes(*values: float) -> list[str]:
    """Bytes as people read them, all in the unit that fits the largest."""
    return _in_one_unit(
        values, ((1 << 30, " GiB"), (1 << 20, " MiB"), (1 << 10, " KiB"), (1, " B"))
    )


def milliseconds(*values: float) -> list[str]:
    """Times in milliseconds, each in three digits."""
    return [f"{value:.3g} ms" for value in values]


def _in_one_unit(values: Sequence[float], units: Sequence[tuple[float, str]]) -> list[str]:
    largest = max(map(abs, values))
    one, unit = next((u for u in units if largest >= u[0]), units[-1])
    numbers = (value / one for value in values)
    return [f"{n:.0f}{unit}" if one == 1 or abs(n) >= 999.5 else f"{n:.3g}{unit}" for n in numbers]
