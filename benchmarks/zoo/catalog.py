"""Which cases there are: every module of this folder named ``*_models`` or ``variants`` has a
function ``cases() -> list[Case]``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .case import Case

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Entry:
    """A case without its code: what the runner needs, and where a worker finds the rest."""

    name: str
    module: str
    environment: str
    dims: dict[str, int]


def modules() -> list[str]:
    """The modules of this folder that list cases."""
    files = [*sorted(HERE.glob("*_models.py")), *HERE.glob("variants.py")]
    return [f"benchmarks.zoo.{file.stem}" for file in files]


def listed(environment: str, names: Iterable[str]) -> tuple[list[Entry], dict[str, str]]:
    """The cases of modules that ``environment`` exports, and by module why it has none here."""
    entries, missing = [], {}
    for module in names:
        try:
            found: Sequence[Case] = importlib.import_module(module).cases()
        except ImportError as error:
            missing[module] = str(error)
            continue
        entries += [
            Entry(case.name, module, case.environment, case.dims)
            for case in found
            if case.environment == environment
        ]
    return entries, missing


def case_of(module: str, name: str) -> Case:
    """One case of a module. Raises KeyError when it has none of that name."""
    cases: Sequence[Case] = importlib.import_module(module).cases()
    return {case.name: case for case in cases}[name]
