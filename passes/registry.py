"""The passes by name. Listing names imports no pass; asking for one imports only that one."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ..ir.errors import UsageError
from ..ir.registry import Registry
from .base import Contract, Pass
from .options import Option, pass_options

GROUP = "secateur.passes"

_BUILTINS = {
    "distill": "distill:Distill",
    "drop-blocks": "drop_blocks:DropBlocks",
    "eliminate-dead": "eliminate_dead:EliminateDead",
    "fold-batchnorm": "fold_batchnorm:FoldBatchNorm",
    "fold-constants": "fold_constants:FoldConstants",
    "prune": "prune:Prune",
    "recover": "recover:Recover",
    "remove-redundant": "remove_redundant:RemoveRedundant",
}


@dataclass(frozen=True)
class PassInfo:
    """One row of ``list_passes``."""

    name: str
    summary: str
    contract: Contract
    provider: str
    options: tuple[Option, ...]


def _check(name: str, loaded: object) -> type[Pass]:
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        raise UsageError(f"pass '{name}' is not a class derived from secateur.passes.base.Pass")
    if loaded.name != name:
        raise UsageError(f"pass '{name}' calls itself '{loaded.name}'; the names must be equal")
    return loaded


@functools.cache
def pass_registry() -> Registry[type[Pass]]:
    """The registry of this process: built-ins and the entry points of `GROUP`."""
    return Registry("pass", GROUP, __package__ or "secateur.passes", _BUILTINS, _check)


def find_pass(name: str) -> type[Pass]:
    """The class of the pass called ``name``. Raises `UsageError` if there is none."""
    return pass_registry().get(name)


def list_passes() -> list[PassInfo]:
    """Every pass with its contract, options and provider, by name. Imports all of them."""
    registry = pass_registry()
    rows = []
    for name in registry.names():
        cls = registry.get(name)
        options = tuple(pass_options(cls).values())
        rows.append(PassInfo(name, cls.summary, cls.contract, registry.provider(name), options))
    return rows
