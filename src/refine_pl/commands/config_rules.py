"""What a key of a configuration takes, in words: types, and the classes of a ``class_path``."""

from __future__ import annotations

import collections.abc
import contextlib
import copy
import importlib
import inspect
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Literal, Union

from jsonargparse import ArgumentParser
from jsonargparse._typehints import get_subclass_or_closed_types
from jsonargparse._util import get_import_path

from refine_pl.errors import ConfigError, did_you_mean

# Their classes are offered wherever they fit, beside those of the base class's own package.
_COMPONENT_PACKAGES = ("refine_pl.data", "refine_pl.callbacks")

# Classes that no configuration can make, and what takes their place.
_INSTEAD = {
    "torch.optim.lr_scheduler.SequentialLR": "refine_pl.training.SequentialLR, with the same "
    "arguments: torch's own takes schedulers that are made already",
}

# Optional packages, and what installs them.
_EXTRAS = {"peft": "pip install 'refine-pl[lora]'"}

_NAMES_SHOWN = 6


# Types ---------------------------------------------------------------------------------------


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
    for part in alternatives(hint):
        bases = get_subclass_or_closed_types(part, callable_return=True)
        if bases:
            is_callable = typing.get_origin(part) is collections.abc.Callable
            arguments = typing.get_args(part)[0] if is_callable else ()
            return bases[0], len(arguments) if isinstance(arguments, list) else 0
    return None


def contents(hint: Any) -> tuple[type, Any] | None:
    """``(dict, V)`` for a mapping of names to V, ``(list, V)`` for anything else that holds V."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if not inspect.isclass(origin) or not issubclass(origin, Iterable) or not arguments:
        return None
    return (dict, arguments[1]) if issubclass(origin, Mapping) else (list, arguments[0])


def takes_other_names(hint: Any) -> bool:
    """Whether a mapping may have keys that are not texts, such as epochs."""
    keys = [args[0] for part in alternatives(hint) if len(args := typing.get_args(part)) == 2]
    return any(key is not str for key in keys)


def rule(hint: Any) -> str:
    """What may be given, with the names of classes after the words."""
    base = component_base(hint)
    if base is None:
        return _describe(hint)
    return "; or ".join(filter(None, (", ".join(choices(hint)), class_rule(base[0]))))


def _describe(hint: Any) -> str:
    parts = alternatives(hint)
    if len(parts) > 1:
        return " or ".join(dict.fromkeys(map(_describe, parts)))
    base, held, words = component_base(hint), contents(hint), choices(hint)
    if base is not None:
        return _a_class(base[0])
    if held is not None:
        what = "a mapping of names to values, each" if held[0] is dict else "a list, each item"
        return f"{what} {_describe(held[1])}"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    names |= {dict: "a mapping", list: "a list", type(None): "null"}
    if words and hint not in names:
        return "one of " + ", ".join(words)
    expression = getattr(hint, "_expression", None)
    if isinstance(expression, str) and inspect.isclass(hint):  # a number with bounds
        kind = next((name for cls, name in names.items() if issubclass(hint, cls)), "a value")
        return kind + " " + re.sub(r"v([<>=!]+)", r"\1 ", expression)
    return names.get(hint, getattr(hint, "__name__", None) or str(hint))


# Classes -------------------------------------------------------------------------------------


def find_class(base: type, path: Any, key: str, where: str, functions: bool = True) -> type | None:
    """The class that ``path`` names; None if it is a function that declares to return one.

    Args:
        base: what it must be a subclass of.
        path: the import path, or the bare name of a known class.
        key: the setting that names it.
        where: where the setting was given.
        functions: whether a function may stand there.

    Raises:
        ConfigError: there is none, it cannot be imported, or it does not fit.
    """
    if not isinstance(path, str):
        raise ConfigError(f"{key} is {path!r}", where=where, allowed=class_rule(base))
    if "." in path:
        found, why = _imported(path)
    else:
        _, found = by_name(base).get(path, ("", None))
        why = f"there is no {base.__name__} called {path}"
    if found is None:
        own = f"a class of your own is looked for from the folder {os.getcwd()}"
        installed = path.startswith(("refine_pl.", "torch.", "lightning."))
        otherwise = _EXTRAS.get(path.partition(".")[0], None if installed else own)
        way_out = _nearest_class(base, path, otherwise)
        raise ConfigError(why, where=where, allowed=class_rule(base), way_out=way_out)
    if not inspect.isclass(found) and functions and _returns(found, base):
        return None
    if not inspect.isclass(found):
        what = f"{key} is {path}, which is not a class"
        raise ConfigError(what, where=where, allowed=class_rule(base))
    problem = None
    if not issubclass(found, base):
        kind = next((c.__name__ for c in found.__mro__[1:] if inspect.isabstract(c)), None)
        problem = f"not a {base.__name__}" + (f" but a {kind}" if kind else "")
    elif inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        problem = f"abstract: it does not define {missing}"
    instead = _INSTEAD.get(get_import_path(found) or "")
    if problem or instead:
        problem = problem or "made from objects, not from settings"
        what = f"{key} is {path}, which is {problem}"
        raise ConfigError(what, where=where, allowed=class_rule(base), way_out=instead)
    return found


def _returns(function: Any, base: type) -> bool:
    """Whether a function declares to return a ``base``."""
    try:
        declared = typing.get_type_hints(function).get("return")
    except Exception:  # whatever names of another module raise; some objects have no hints
        return False
    return inspect.isclass(declared) and issubclass(declared, base)


def known_classes(base: type) -> dict[str, type]:
    """Import paths of the classes that fit where a ``base`` belongs; this project's come first."""
    package = base.__module__.rpartition(".")[0] or base.__module__
    for name in (package, *_COMPONENT_PACKAGES):
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            for exported in getattr(module, "__all__", ()):
                getattr(module, exported, None)  # some packages load what they export on first use
    roots = {base.__module__.partition(".")[0], "refine_pl"}
    found: dict[str, type] = {}
    for cls in list(_subclasses(base)) or [base]:
        public = not cls.__name__.startswith("_") and cls.__module__.partition(".")[0] in roots
        if public and not inspect.isabstract(cls):
            found[get_import_path(cls) or ""] = cls
    exported_ones = {path: c for path, c in found.items() if not path.startswith(c.__module__)}
    found = exported_ones or found
    order = sorted(found, key=lambda path: (not path.startswith("refine_pl."), path))
    return {path: found[path] for path in order if path not in _INSTEAD}


def by_name(base: type) -> dict[str, tuple[str, type]]:
    """The same paths and classes by the bare names, which the parser takes too."""
    return {path.rpartition(".")[2]: (path, cls) for path, cls in known_classes(base).items()}


def class_rule(base: type) -> str:
    """What may be named where a ``base`` belongs, in words."""
    names = some([*known_classes(base), *getattr(base, "elsewhere", ())])
    return f"{_a_class(base)}: {names}" if names else _a_class(base)


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    text = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{text} and {more} more (see --help)" if more > 0 else text


def _a_class(base: type) -> str:
    return f"a class_path of {'an' if base.__name__[0] in 'AEIOU' else 'a'} {base.__name__}"


def _imported(path: str) -> tuple[Any, str]:
    """What an import path names, or None and why it names nothing."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
        return found, f"{path} cannot be imported: {module} has no {name}"
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            return None, f"{path} cannot be imported: there is no module {error.name}"
        # The module itself fails: say where, unless its own text does.
        files = [f for f in traceback.extract_tb(error.__traceback__) if f.filename[0] != "<"]
        at = f" ({files[-1].filename}, line {files[-1].lineno})"
        text = f"{type(error).__name__}: {error}{'' if isinstance(error, SyntaxError) else at}"
        return None, f"{module} cannot be imported: {text}"


def _nearest_class(base: type, path: str, otherwise: str | None) -> str | None:
    known = list(known_classes(base))
    own = [c for c in _subclasses(base) if c.__module__ in sys.modules]  # a user's own too
    known += [f"{c.__module__}.{c.__qualname__}" for c in own]
    names = {full.rpartition(".")[2]: full for full in reversed(known)}
    return did_you_mean(path, known, did_you_mean(path.rpartition(".")[2], names, otherwise))


def _subclasses(cls: type) -> Iterable[type]:
    direct: list[type] = cls.__subclasses__()
    for subclass in direct:
        yield from (subclass, *_subclasses(subclass))
