"""The options of a pass: what its fields may hold, and their values as text and back.

An option's type is a bool, an int, a float, a string, a `Literal`, a tuple of any number of one
of these, or a union. A raw value is a bare word of pipeline text (a `Word`, which becomes what the
option asks for), a string in quotes, or a native value of TOML or Python.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from ..ir.errors import UsageError, spell_options
from ..ir.registry import one_line, suggest
from .base import Pass

_BARE = re.compile(r'[^\s,{}\[\]="]+')
_INT = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf)")
_MAX_DIGITS = 100


class Word(str):
    """A bare word of pipeline text: its type is whatever the option asks for."""

    __slots__ = ()


class Mismatch(Exception):
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
        key = _key(field.name)
        try:
            text = _describe(hints[field.name])
        except Mismatch as error:
            raise UsageError(f"option '{key}' of pass '{cls.name}' has {error}") from None
        value = None if required else default
        options[key] = Option(key, field.name, hints[field.name], text, required, value)
    return options


def build_pass(cls: type[Pass], values: Mapping[str, object]) -> Pass:
    """Construct a pass from raw option values by key (kebab or snake case), type-checked.

    Raises `UsageError` for an unknown key, a missing option or a value of the wrong type.
    """
    options = pass_options(cls)
    arguments: dict[str, object] = {}
    for key, raw in values.items():
        option = find_option(cls, options, key)
        if option.field in arguments:
            raise UsageError(f"option '{option.key}' of pass '{cls.name}' is given twice")
        try:
            arguments[option.field] = coerce(raw, option.hint)
        except Mismatch as error:
            raise UsageError(
                f"option '{option.key}' of pass '{cls.name}' must be {error}, not {show(raw)}"
            ) from None
    for option in options.values():
        if option.required and option.field not in arguments:
            raise UsageError(f"pass '{cls.name}' needs the option '{option.key}'")
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        text = spell_options(one_line(error), _key)
        raise UsageError(f"pass '{cls.name}': {text}") from error


def find_option(cls: type[Pass], options: Mapping[str, Option], key: str) -> Option:
    """The option called ``key`` (kebab or snake case); `UsageError` if there is none."""
    option = options.get(_key(key))
    if option is None:
        raise UsageError(f"unknown option '{key}' of pass '{cls.name}'{suggest(key, options)}")
    return option


def _key(field: str) -> str:
    return field.replace("_", "-")


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
    raise Mismatch(f"the type {hint}, which a pipeline cannot express")


def coerce(raw: object, hint: Any) -> Any:
    """Turn a raw value (bare word, string, or native TOML value) into a value of ``hint``.

    Raises `Mismatch` if it is none.
    """
    word = raw if isinstance(raw, Word) else None
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
            if _fits(raw, type(choice)) and coerce(raw, type(choice)) == choice:
                return choice
    elif _is_union(hint):
        for member in _members(hint):
            if _fits(raw, member):
                return coerce(raw, member)
    elif _is_tuple(hint) and isinstance(raw, (list, tuple)):
        item = typing.get_args(hint)[0]
        if all(_fits(r, item) for r in raw):
            return tuple(coerce(r, item) for r in raw)
    raise Mismatch(_describe(hint))


def _fits(raw: object, hint: Any) -> bool:
    try:
        coerce(raw, hint)
    except Mismatch:
        return False
    return True


def _to_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        raise Mismatch("a number below 1.8e308") from None


def show(raw: object) -> str:
    """A raw value as a message shows it."""
    if isinstance(raw, Word):
        return f"'{raw}'"
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, (list, tuple)):
        return "a list"
    if isinstance(raw, dict):
        return "a table"
    return json.dumps(raw, ensure_ascii=False) if isinstance(raw, str) else str(raw)


def is_default(value: object, option: Option) -> bool:
    """Whether ``value`` is what the option holds when it is left out; `Mismatch` as `coerce`."""
    if option.required or value is option.default:
        return not option.required
    value, default = coerce(value, option.hint), coerce(option.default, option.hint)
    return type(value) is type(default) and bool(value == default)


def format_value(value: object, hint: Any) -> str:
    """Text that is read back as ``value``; raises `Mismatch` if it is not one of ``hint``."""
    value = coerce(value, hint)
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
        back = coerce(Word(text), hint)
        if isinstance(back, str) and back == text:
            return text
    return json.dumps(text, ensure_ascii=False)
