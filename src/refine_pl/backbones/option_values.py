"""Whether the value of a model's option has the type and the range that its annotation says.

The parser of the command line converts as it checks; ``config.json``, checkpoints and Python come
without a parser. This check is where all of them end up, and it converts nothing: a text that
looks like a number was written by something that is wrong about the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from refine_pl.errors import ConfigError

MOST = 2**24
"""No whole number of a model is larger unless its field says so, and no factor either."""


class _Rule(NamedTuple):
    """What one kind of value must be."""

    words: str
    fits: Callable[[Any], Any]


def check_value(name: str, value: object, hint: Any, most: float = MOST) -> None:
    """Refuse a value of another type than its field has, or out of its range.

    Args:
        name: of the field.
        value: what was given.
        hint: the field's annotation: numbers, restricted ones of jsonargparse, bool, str, Literal,
            lists of them, unions of them with None. Another kind of annotation checks nothing.
        most: the largest number, in magnitude.

    Raises:
        ConfigError: naming the field, the value and the rule.
    """
    rules = _rules(hint, most)
    if _any(rules)(value):
        return
    allowed = " or ".join(rule.words for rule in rules)
    shown = f"{value!r:.60}"
    if get_origin(hint) is Literal:
        what = f"{name}={shown} is not supported: it is not known"
    else:
        what = f"{name}={shown} is {_described(value, rules)}"
    raise ConfigError(
        what, where=f"backbone option {name}", allowed=allowed, way_out=_meant(name, value, rules)
    )


def same(value: object, option: object) -> bool:
    """Whether a value is this option: equal, and not just a number that equals a truth value."""
    return isinstance(value, bool) == isinstance(option, bool) and bool(value == option)


def _rules(hint: Any, most: float) -> list[_Rule]:
    """The rules of an annotation, one of which must fit."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return [rule for one in inner for rule in _rules(one, most)]
    if origin is Literal:
        words = ", ".join(map(repr, inner))
        return [_Rule(words, lambda v: any(same(v, option) for option in inner))]
    if hint is type(None):
        return [_Rule("null", lambda v: v is None)]
    if hint is bool:
        return [_Rule("true or false", lambda v: isinstance(v, bool))]
    if isinstance(hint, type) and issubclass(hint, int | float):
        return [_number(hint, most)]
    if origin is list and inner:
        each = _rules(inner[0], most)
        words = f"a list of at least one, each {' or '.join(rule.words for rule in each)}"
        return [_Rule(words, lambda v: isinstance(v, list) and v and all(map(_any(each), v)))]
    kind: Any = origin or hint
    if isinstance(kind, type):
        known: dict[Any, str] = {str: "a text", dict: "a mapping"}
        words = known.get(kind, f"a {kind.__name__}")
        return [_Rule(words, lambda v: isinstance(v, kind))]
    return [_Rule("anything", lambda v: True)]


def _any(rules: list[_Rule]) -> Callable[[Any], bool]:
    return lambda value: any(rule.fits(value) for rule in rules)


def _number(kind: type, most: float) -> _Rule:
    """A number of ``kind``, with the restrictions that jsonargparse's types carry."""
    whole = issubclass(kind, int)
    limits = getattr(kind, "_restrictions", [])
    base = int if whole else (int, float)

    def fits(value: Any) -> bool:
        if not isinstance(value, base) or isinstance(value, bool):
            return False
        if abs(value) > most or not math.isfinite(value):  # in this order: an int may be too long
            return False
        return all(compare(value, limit) for compare, limit in limits)

    name = "a whole number" if whole else "a number"
    expression = str(getattr(kind, "_expression", ""))
    for sign, spoken in (("v>=", " of at least "), ("v>", " above "), ("v<=", " of at most ")):
        expression = expression.replace(sign, spoken)
    return _Rule(f"{name}{expression} (and up to {most:,})", fits)


def _described(value: object, rules: list[_Rule]) -> str:
    """What is wrong with a value: its type, or else that it is out of range."""
    if isinstance(value, bool):
        return "a truth value"
    if value is None:
        return "not given"
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    for kind, words in ((str, "a text"), (list, "a list"), (dict, "a mapping")):
        if isinstance(value, kind):
            return words
    whole = not any(rule.words.startswith("a number") for rule in rules)
    if not any("number" in rule.words for rule in rules):
        return "a number"
    return "not a whole number" if whole and isinstance(value, float) else "out of range"


def _meant(name: str, value: object, rules: list[_Rule]) -> str | None:
    """The same value as a plain number or truth value, if that is allowed."""
    if isinstance(value, str):
        meant: object = {"true": True, "false": False, "none": None, "null": None}.get(
            value.lower(), value
        )
        for kind in (float, int):
            try:
                meant = kind(value)
            except ValueError:
                continue
    elif isinstance(value, float) and value.is_integer():
        meant = int(value)
    else:
        return None
    if meant is value or not _any(rules)(meant):
        return None
    shown = {True: "true", False: "false"}.get(meant, meant) if isinstance(meant, bool) else meant
    return f"{name}: {'null' if meant is None else shown}"
