"""Named things that load when first asked for: passes, criteria, coupling rules.

A `Registry` maps a name to a *provider* (who registered it) and a loader. Built-ins are
``"module:attribute"`` strings relative to a package, so that listing names imports nothing.
Third parties arrive through the entry points of a group. Two providers of one name are an
error that names both: neither silently wins.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from .errors import UsageError

T = TypeVar("T")

_LISTED = 20

Loader = Callable[[], object]
"""Imports and returns the registered object; may raise anything."""


def entry_points(group: str) -> list[tuple[str, str, Loader]]:
    """Return ``(name, distribution, loader)`` of every entry point of ``group``.

    The order is by name, then distribution, so that it does not depend on ``sys.path``.
    Nothing is imported until a loader is called.
    """
    found = importlib.metadata.entry_points(group=group)
    rows = [(e.name, e.dist.name if e.dist is not None else "?", e.load) for e in found]
    return sorted(rows, key=lambda row: row[:2])


def load(kind: str, name: str, provider: str, loader: Loader) -> object:
    """Call ``loader``; whatever it raises becomes a one-line `UsageError` naming the provider."""
    try:
        return loader()
    except Exception as error:
        raise UsageError(
            f"{kind} '{name}' of '{provider}' cannot be loaded "
            f"({type(error).__name__}: {one_line(error)}); repair or uninstall '{provider}'"
        ) from error


def one_line(error: object) -> str:
    """The text of an error with all runs of white space collapsed to one space."""
    return " ".join(str(error).split())


def suggest(name: str, known: Iterable[str], most: int = 1) -> str:
    """``"; did you mean 'x'?"`` for at most so many known names, the closest or those that hold
    this one; else ``"; known: a, b"``."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.6)
    if not close:
        low = name.lower()
        close = [o for o in names if low == o.lower() or (len(low) > 2 and low in o.lower())][:most]
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; known: {', '.join(names[:_LISTED])}{more}" if names else ""


class Registry(Generic[T]):
    """Names of one kind of thing, from the package itself and from entry points.

    ``kind`` is the word used in messages ("pass"), ``group`` the entry-point group,
    ``package`` the package that the ``builtins`` strings are relative to, and ``check`` turns
    a loaded object into a ``T`` or raises `UsageError`. Entry points are read on first use.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        package: str,
        builtins: Mapping[str, str],
        check: Callable[[str, object], T],
    ) -> None:
        self.kind = kind
        self.group = group
        self._check = check
        self._discovered = False
        self._providers: dict[str, tuple[str, Loader]] = {}
        self._loaded: dict[str, T] = {}
        for name, target in builtins.items():
            self.add(name, "secateur", _relative_loader(package, target))

    def add(self, name: str, provider: str, loader: Loader) -> None:
        """Register ``name``. Raises `UsageError` when another provider has it already."""
        if name in self._providers:
            raise UsageError(
                f"{self.kind} '{name}' is provided by both '{self._providers[name][0]}' and "
                f"'{provider}'; uninstall one of them"
            )
        self._providers[name] = (provider, loader)

    def names(self) -> list[str]:
        """All names, sorted. Imports none of them."""
        self._discover()
        return sorted(self._providers)

    def provider(self, name: str) -> str:
        """The distribution that provides ``name``. Raises `UsageError` if unknown."""
        return self._find(name)[0]

    def get(self, name: str) -> T:
        """Import and return what is registered as ``name``.

        Raises `UsageError` if the name is unknown (with the closest match), cannot be
        imported, or is not of the registry's kind.
        """
        if name not in self._loaded:
            provider, loader = self._find(name)
            loaded = load(self.kind, name, provider, loader)
            try:
                self._loaded[name] = self._check(name, loaded)
            except UsageError as error:
                raise UsageError(f"{error}; repair or uninstall '{provider}'") from None
        return self._loaded[name]

    def _find(self, name: str) -> tuple[str, Loader]:
        self._discover()
        if name not in self._providers:
            raise UsageError(f"unknown {self.kind} '{name}'{suggest(name, self._providers)}")
        return self._providers[name]

    def _discover(self) -> None:
        if self._discovered:
            return
        for name, provider, loader in entry_points(self.group):
            self.add(name, provider, loader)
        self._discovered = True


def _relative_loader(package: str, target: str) -> Loader:
    module, _, attribute = target.partition(":")

    def loader() -> object:
        return getattr(importlib.import_module(f"{package}.{module}"), attribute)

    return loader
