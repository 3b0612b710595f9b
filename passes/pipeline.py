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

import dataclasses
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from ..ir.errors import UsageError
from ..ir.registry import one_line, suggest
from .base import Pass, PassContext

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Lookup = Callable[[str], "type[Pass]"]

_TOKEN = re.compile(
    r'\s*(?:(?P<mark>[,{}\[\]=])|(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<word>[^\s,{}\[\]="]+))'
)
_BARE = re.compile(r'[^\s,{}\[\]="]+')
_INT = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf)")
_MAX_DIGITS = 100


class _Word(str):
    """A bare word of pipeline text: its type is whatever the option asks for."""

    __slots__ = ()


class _Mismatch(Exception):
    """A value is not of an option's type; the text says what was expected."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a pass: ``key`` as in pipeline text, ``field`` as in Python."""

    key: str
    field: str
    hint: Any
    type_text: str
    required: bool
    default: Any


@dataclasses.dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    column: int


def pass_options(cls: type[Pass]) -> dict[str, Option]:
    """The options of a pass by key, in the order of its fields.

    Raises `UsageError` if a field's type cannot be written in a pipeline.
    """
    hints = typing.get_type_hints(cls)
    options = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = default is dataclasses.MISSING
        key = field.name.replace("_", "-")
        try:
            text = _describe(hints[field.name])
        except _Mismatch as error:
            raise UsageError(f"option '{key}' of pass '{cls.name}' has {error}") from None
        value = None if required else default
        options[key] = Option(key, field.name, hints[field.name], text, required, value)
    return options


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


def build_pass(cls: type[Pass], values: Mapping[str, object]) -> Pass:
    """Construct a pass from raw option values by key (kebab or snake case), type-checked.

    Raises `UsageError` for an unknown key, a missing option or a value of the wrong type.
    """
    options = pass_options(cls)
    arguments: dict[str, object] = {}
    for key, raw in values.items():
        option = _find_option(cls, options, key)
        if option.field in arguments:
            raise UsageError(f"option '{option.key}' of pass '{cls.name}' is given twice")
        try:
            arguments[option.field] = _coerce(raw, option.hint)
        except _Mismatch as error:
            raise UsageError(
                f"option '{option.key}' of pass '{cls.name}' must be {error}, not {_show(raw)}"
            ) from None
    for option in options.values():
        if option.required and option.field not in arguments:
            raise UsageError(f"pass '{cls.name}' needs the option '{option.key}'")
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        raise UsageError(f"pass '{cls.name}': {one_line(error)}") from error


def _default_lookup() -> Lookup:
    from .registry import find_pass

    return find_pass


def _find_option(cls: type[Pass], options: Mapping[str, Option], key: str) -> Option:
    option = options.get(key.replace("_", "-"))
    if option is None:
        raise UsageError(f"unknown option '{key}' of pass '{cls.name}'{suggest(key, options)}")
    return option


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
            option = _find_option(cls, options, key.text)
            if option.key in values:
                raise UsageError(f"option '{option.key}' of pass '{cls.name}' is given twice")
            _coerce(raw, option.hint)
        except UsageError as error:
            raise _error(key, str(error)) from error
        except _Mismatch as error:
            text = f"option '{key.text}' of pass '{cls.name}' must be {error}, not {_show(raw)}"
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
            return _Word(token.text)
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


def _members(hint: Any) -> list[Any]:
    """The members of a union, most specific first: a bare ``3`` of ``str | int`` is a number."""
    order = {type(None): 0, bool: 1, int: 2, float: 3, str: 9}
    return sorted(typing.get_args(hint), key=lambda h: order.get(h, 4))


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (Union, types.UnionType)


def _is_tuple(hint: Any) -> bool:
    arguments = typing.get_args(hint)
    return typing.get_origin(hint) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis


def _describe(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    if hint in names:
        return names[hint]
    if hint is type(None):
        return "none"
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(_format_scalar(c, type(c)) for c in typing.get_args(hint))
    if _is_union(hint):
        return " or ".join(_describe(h) for h in reversed(_members(hint)))
    if _is_tuple(hint):
        item = typing.get_args(hint)[0]
        if not _is_tuple(item):
            return f"a list in brackets, each {_describe(item)}"
    raise _Mismatch(f"the type {hint}, which a pipeline cannot express")


def _coerce(raw: object, hint: Any) -> Any:
    """Turn a raw value (bare word, string, or native TOML value) into a value of ``hint``."""
    word = raw if isinstance(raw, _Word) else None
    if hint is bool:
        if isinstance(raw, bool):
            return raw
        if word in ("true", "false"):
            return word == "true"
    elif hint is int:
        if isinstance(raw, int) and not isinstance(raw, bool):
            return raw
        if word is not None and _INT.fullmatch(word) and len(word) <= _MAX_DIGITS:
            return int(word)
    elif hint is float:
        if isinstance(raw, (int, float)) and not isinstance(raw, bool) and not math.isnan(raw):
            return _to_float(raw)
        if word is not None and _FLOAT.fullmatch(word):
            return float(word)
    elif hint is str:
        if isinstance(raw, str):
            return str(raw)
    elif hint is type(None):
        if raw is None or word == "none":
            return None
    elif typing.get_origin(hint) is Literal:
        for choice in typing.get_args(hint):
            if _fits(raw, type(choice)) and _coerce(raw, type(choice)) == choice:
                return choice
    elif _is_union(hint):
        for member in _members(hint):
            if _fits(raw, member):
                return _coerce(raw, member)
    elif _is_tuple(hint) and isinstance(raw, (list, tuple)):
        item = typing.get_args(hint)[0]
        if all(_fits(r, item) for r in raw):
            return tuple(_coerce(r, item) for r in raw)
    raise _Mismatch(_describe(hint))


def _fits(raw: object, hint: Any) -> bool:
    try:
        _coerce(raw, hint)
    except _Mismatch:
        return False
    return True


def _to_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        raise _Mismatch("a number below 1.8e308") from None


def _show(raw: object) -> str:
    if isinstance(raw, _Word):
        return f"'{raw}'"
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, (list, tuple)):
        return "a list"
    if isinstance(raw, dict):
        return "a table"
    return json.dumps(raw, ensure_ascii=False) if isinstance(raw, str) else str(raw)


def _format_pass(p: Pass) -> str:
    parts = []
    for option in pass_options(type(p)).values():
        value = getattr(p, option.field)
        try:
            if _is_default(value, option):
                continue
            parts.append(f"{option.key}={_format_value(value, option.hint)}")
        except _Mismatch as error:
            raise UsageError(
                f"option '{option.key}' of pass '{p.name}' must be {error}, not {_show(value)}"
            ) from None
    return p.name + (f"{{{' '.join(parts)}}}" if parts else "")


def _is_default(value: object, option: Option) -> bool:
    if option.required or value is option.default:
        return not option.required
    value, default = _coerce(value, option.hint), _coerce(option.default, option.hint)
    return type(value) is type(default) and bool(value == default)


def _format_value(value: object, hint: Any) -> str:
    value = _coerce(value, hint)
    if isinstance(value, tuple):
        members = _members(hint) if _is_union(hint) else [hint]
        item = next(typing.get_args(m)[0] for m in members if _is_tuple(m) and _fits(value, m))
        return f"[{' '.join(_format_scalar(v, item) for v in value)}]"
    return _format_scalar(value, hint)


def _format_scalar(value: object, hint: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    text = str(value)
    if not isinstance(value, str):
        return text
    if _BARE.fullmatch(text):
        back = _coerce(_Word(text), hint)
        if isinstance(back, str) and back == text:
            return text
    return json.dumps(text, ensure_ascii=False)


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
