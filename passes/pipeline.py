"""Pipelines as text and as TOML, both checked against the option types of the passes.

    pipeline := pass ("," pass)*
    pass     := name [ "{" option* "}" ]
    option   := key "=" value | key              (a key alone sets a bool to true)
    value    := scalar | "[" scalar* "]"
    scalar   := bare word | JSON string in double quotes

White space separates options and list items and is free elsewhere. A bare word has none of
the characters ``, { } [ ] = "`` and no white space. ``none`` is the absent value of an
optional option. ``format_pipeline`` writes defaults never and quotes only where needed, so
``parse(format(p)) == p`` for every pipeline of valid values.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir.errors import UsageError
from ..ir.registry import one_line, suggest
from .base import Pass, PassContext
from .options import (
    Mismatch,
    Option,
    Word,
    build_pass,
    coerce,
    find_option,
    format_value,
    is_default,
    pass_options,
    show,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Lookup = Callable[[str], "type[Pass]"]

_TOKEN = re.compile(
    r'\s*(?:(?P<mark>[,{}\[\]=])|(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<word>[^\s,{}\[\]="]+))'
)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    column: int


def parse_pipeline(text: str, lookup: Lookup | None = None) -> tuple[Pass, ...]:
    """Read pipeline text; ``lookup`` finds a pass class by name (default: the registry).

    Blank text is the empty pipeline. Raises `UsageError` saying at which column (from 1) what
    is wrong.
    """
    return _Parser(text, lookup or _default_lookup()).pipeline()


def format_pipeline(passes: Iterable[Pass]) -> str:
    """Pipeline text that `parse_pipeline` reads back as equal passes, without defaults.

    Raises `UsageError` if an option holds a value that its type does not allow.
    """
    return ",".join(_format_pass(p) for p in passes)


def load_pipeline_toml(
    path: str | Path, lookup: Lookup | None = None
) -> tuple[tuple[Pass, ...], PassContext]:
    """Read ``[[pipeline]]`` tables (key ``pass`` plus its options) and a ``[context]`` table.

    ``[context]`` may hold ``seed``, ``threads`` and a table ``dims`` of sizes. Raises
    `UsageError` naming the file and the entry if it cannot be read or does not fit.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read pipeline file {path}: {one_line(error)}") from error
    unknown = sorted(set(data) - {"pipeline", "context"})
    if unknown:
        raise UsageError(f"{path}: unknown key '{unknown[0]}'; write [[pipeline]] and [context]")
    entries = data.get("pipeline", [])
    if not isinstance(entries, list):
        raise UsageError(f"{path}: 'pipeline' must be an array of tables; write [[pipeline]]")
    find = lookup or _default_lookup()
    passes = tuple(_toml_pass(path, i, e, find) for i, e in enumerate(entries, start=1))
    return passes, _toml_context(path, data.get("context", {}))


def _default_lookup() -> Lookup:
    from .registry import find_pass

    return find_pass


class _Parser:
    def __init__(self, text: str, lookup: Lookup) -> None:
        self._tokens = _tokenize(text)
        self._lookup = lookup
        self._at = 0

    def pipeline(self) -> tuple[Pass, ...]:
        if self._peek().kind == "end":
            return ()
        passes = [self._pass()]
        while self._peek().kind != "end":
            self._expect(",", "',' or the end after a pass")
            passes.append(self._pass())
        return tuple(passes)

    def _pass(self) -> Pass:
        start = self._expect("word", "the name of a pass")
        try:
            cls = self._lookup(start.text)
        except UsageError as error:
            raise _error(start, str(error)) from error
        values: dict[str, object] = {}
        if self._peek().kind == "{":
            self._next()
            options = pass_options(cls)
            while self._peek().kind != "}":
                self._option(cls, options, values)
            self._next()
        try:
            return build_pass(cls, values)
        except UsageError as error:
            raise _error(start, str(error)) from error

    def _option(
        self, cls: type[Pass], options: Mapping[str, Option], values: dict[str, object]
    ) -> None:
        key = self._expect("word", f"an option of pass '{cls.name}' or '}}'")
        raw: object = True
        if self._peek().kind == "=":
            self._next()
            raw = self._value()
        try:
            option = find_option(cls, options, key.text)
            if option.key in values:
                raise UsageError(f"option '{option.key}' of pass '{cls.name}' is given twice")
            coerce(raw, option.hint)
        except UsageError as error:
            raise _error(key, str(error)) from error
        except Mismatch as error:
            text = f"option '{key.text}' of pass '{cls.name}' must be {error}, not {show(raw)}"
            raise _error(key, text) from None
        values[option.key] = raw

    def _value(self) -> object:
        if self._peek().kind != "[":
            return self._scalar("a value or '['")
        self._next()
        items = []
        while self._peek().kind != "]":
            items.append(self._scalar("a value or ']'"))
        self._next()
        return items

    def _scalar(self, wanted: str) -> str:
        token = self._next()
        if token.kind == "word":
            return Word(token.text)
        if token.kind != "quoted":
            raise _unexpected(token, wanted)
        try:
            return str(json.loads(token.text, strict=False))
        except ValueError as error:
            raise _error(token, f"bad escape in the string {token.text}") from error

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _expect(self, kind: str, wanted: str) -> _Token:
        token = self._next()
        if token.kind != kind:
            raise _unexpected(token, wanted)
        return token


def _tokenize(text: str) -> list[_Token]:
    tokens = []
    end = len(text.rstrip())
    at = 0
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            column = at + len(text[at:]) - len(text[at:].lstrip()) + 1
            raise UsageError(f"pipeline: the string that starts at column {column} has no end")
        kind = str(match.lastgroup)
        token = match.group(kind)
        tokens.append(_Token(token if kind == "mark" else kind, token, match.start(kind) + 1))
        at = match.end()
    return [*tokens, _Token("end", "", end + 1)]


def _error(token: _Token, text: str) -> UsageError:
    return UsageError(f"pipeline: {one_line(text)} (at column {token.column})")


def _unexpected(token: _Token, wanted: str) -> UsageError:
    found = "the end" if token.kind == "end" else f"'{token.text}'"
    return _error(token, f"expected {wanted}, found {found}")


def _format_pass(p: Pass) -> str:
    parts = []
    for option in pass_options(type(p)).values():
        value = getattr(p, option.field)
        try:
            if is_default(value, option):
                continue
            parts.append(f"{option.key}={format_value(value, option.hint)}")
        except Mismatch as error:
            raise UsageError(
                f"option '{option.key}' of pass '{p.name}' must be {error}, not {show(value)}"
            ) from None
    return p.name + (f"{{{' '.join(parts)}}}" if parts else "")


def _toml_pass(path: str | Path, index: int, entry: object, lookup: Lookup) -> Pass:
    where = f"{path}: pipeline entry {index}"
    if not isinstance(entry, dict) or not isinstance(entry.get("pass"), str):
        raise UsageError(f'{where} needs a key pass = "name"')
    values = {key: value for key, value in entry.items() if key != "pass"}
    try:
        return build_pass(lookup(entry["pass"]), values)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _toml_context(path: str | Path, table: object) -> PassContext:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: 'context' must be a table; write [context]")
    wanted: dict[str, Any] = {"seed": int, "threads": int, "dims": None}
    for key, value in table.items():
        if key not in wanted:
            raise UsageError(f"{path}: unknown key '{key}' in [context]{suggest(key, wanted)}")
        if key == "dims":
            sizes: Sequence[object] = list(value.values()) if isinstance(value, dict) else [None]
        else:
            sizes = [value]
        if not all(type(s) is int and s >= 0 for s in sizes):
            what = "a table of sizes" if key == "dims" else "a whole number, 0 or more"
            raise UsageError(f"{path}: '{key}' in [context] must be {what}")
    return PassContext(**table)
