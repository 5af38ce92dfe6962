"""What a configuration may hold, as the parser knows it: keys, rules and classes, in words."""

from __future__ import annotations

import collections.abc
import copy
import inspect
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Union

from jsonargparse import ArgumentParser


@dataclass(frozen=True)
class Setting:
    """One key that takes a value: its type, its default and whether it must be given."""

    hint: Any
    default: Any = None
    required: bool = False


Group = dict[str, "Setting | Group"]


def parser_schema(parser: ArgumentParser) -> Group:
    """The keys of ``parser``, nested."""
    schema: Group = {}
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if hint is None or action.dest.endswith(".help"):
            continue
        *parents, name = action.dest.split(".")
        group = schema
        for parent in parents:
            inner = group.setdefault(parent, {})
            assert isinstance(inner, dict)
            group = inner
        group[name] = Setting(hint, action.default, bool(getattr(action, "required", False)))
    return schema


def class_schema(cls: type, positional: int = 0) -> Group:
    """The ``init_args`` of a class, without the first ``positional`` ones."""
    parser = ArgumentParser(exit_on_error=False)
    skip: set[str | int] = {positional} if positional else set()
    parser.add_class_arguments(cls, None, fail_untyped=False, skip=skip)
    return parser_schema(parser)


def accepts(hint: Any, value: Any) -> bool:
    """Whether ``value`` suits a key of type ``hint``."""
    if value is None:  # the parser takes null for every type, as if the key had not been given
        parts = alternatives(hint)
        return type(None) in parts or not all(map(_is_typed, parts))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_object({"value": copy.deepcopy(value)})
    except Exception:
        return False
    return True


def _is_typed(hint: Any) -> bool:
    own_types = getattr(hint, "__module__", "").startswith("jsonargparse._")  # for no annotation
    return hint is not Any and hint is not object and not own_types


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return tuple(part for arg in typing.get_args(hint) for part in alternatives(arg))
    return (hint,)


def choices(hint: Any) -> list[str]:
    """The words that a type names one by one, also beside other alternatives."""
    found: list[str] = []
    for part in alternatives(hint):
        if typing.get_origin(part) is Literal:
            found += [word for word in typing.get_args(part) if isinstance(word, str)]
        elif inspect.isclass(part) and issubclass(part, Enum):
            found += part.__members__
        elif part is bool:
            found += ["false", "true"]
    return found


def component_base(hint: Any) -> tuple[type, int] | None:
    """What a ``class_path`` must be a subclass of, and how many arguments it gets from the program.

    A ``Callable[[A], C]`` slot takes a class ``C`` too, whose first argument is left open.
    """
    if typing.get_origin(hint) is collections.abc.Callable:
        arguments, result = typing.get_args(hint)
        if inspect.isclass(result):
            return result, len(arguments) if isinstance(arguments, list) else 0
        return None
    if not inspect.isclass(hint) or typing.get_origin(hint) is not None or not _is_typed(hint):
        return None
    plain = (int, float, str, bytes, Mapping, list, tuple, set, Enum, type(None))
    if issubclass(hint, plain) or hint.__module__ in ("builtins", "pathlib", "datetime"):
        return None
    return hint, 0


def item_hint(hint: Any) -> Any:
    """The type of the items of a list-like type, or None."""
    origin = typing.get_origin(hint)
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Iterable):
        if issubclass(origin, Mapping):
            return None
        return next(iter(typing.get_args(hint)), None)
    return None


def value_hint(hint: Any) -> Any:
    """The type of the values of a mapping type, or None."""
    origin = typing.get_origin(hint)
    if inspect.isclass(origin) and issubclass(origin, Mapping) and typing.get_args(hint):
        return typing.get_args(hint)[1]
    return None


def describe(hint: Any) -> str:
    """The rule that a type stands for, in words."""
    parts = alternatives(hint)
    if len(parts) > 1:
        return " or ".join(dict.fromkeys(describe(part) for part in parts))
    base = component_base(hint)
    if base is not None:
        name = base[0].__name__
        return f"a class_path of {'an' if name[0] in 'AEIOU' else 'a'} {name}"
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(value) for value in typing.get_args(hint))
    if value_hint(hint) is not None:
        return f"a mapping of names to values, each {describe(value_hint(hint))}"
    if item_hint(hint) is not None:
        return f"a list, each item {describe(item_hint(hint))}"
    words = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    words |= {dict: "a mapping", list: "a list", type(None): "null"}
    expression = getattr(hint, "_expression", None)
    if isinstance(expression, str) and inspect.isclass(hint):  # a number with bounds
        kind = next((word for cls, word in words.items() if issubclass(hint, cls)), "a value")
        return kind + " " + re.sub(r"v([<>=!]+)", r"\1 ", expression)
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return "one of " + ", ".join(hint.__members__)
    return words.get(hint, getattr(hint, "__name__", None) or str(hint))
