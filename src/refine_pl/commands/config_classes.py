"""The classes that a ``class_path`` may name: finding them, and saying why one does not fit."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import traceback
from collections.abc import Iterable
from typing import Any

from refine_pl.commands.config_schema import describe
from refine_pl.errors import ConfigError, nearest

# Their classes are offered wherever they fit, beside those of the base class's own package.
_COMPONENT_PACKAGES = ("refine_pl.data", "refine_pl.callbacks")

_NAMES_SHOWN = 6


def find_class(base: type, path: Any, key: str, where: str) -> type | None:
    """The class that ``path`` names; None if it is a function, which the parser also takes.

    Args:
        base: what it must be a subclass of.
        path: the import path, or the bare name of a known class.
        key: the setting that names it.
        where: where the setting was given.

    Raises:
        ConfigError: there is none, it cannot be imported, or it does not fit.
    """
    rule = component_rule(base)
    if not isinstance(path, str):
        raise ConfigError(f"{key} is {path!r}", where=where, allowed=rule)
    if "." not in path:
        short = {name.rpartition(".")[2]: cls for name, cls in known_classes(base).items()}
        if path not in short:
            raise _no_such_class(base, path, f"there is no {base.__name__} called {path}", where)
        return short[path]
    found = _import_object(base, path, where)
    if not inspect.isclass(found):
        return None
    if not issubclass(found, base):
        kind = next((c.__name__ for c in found.__mro__[1:] if inspect.isabstract(c)), None)
        what = f"{key} is {path}, which is not a {base.__name__}"
        raise ConfigError(what + (f" but a {kind}" if kind else ""), where=where, allowed=rule)
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        what = f"{key} is {path}, which is abstract: it does not define {missing}"
        raise ConfigError(what, where=where, allowed=rule)
    return found


def known_classes(base: type) -> dict[str, type]:
    """Import paths of the classes that fit where a ``base`` belongs; this project's come first."""
    package = base.__module__.rpartition(".")[0] or base.__module__
    for name in (package, *_COMPONENT_PACKAGES):
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            for exported in getattr(module, "__all__", ()):
                getattr(module, exported, None)  # some packages load what they export on first use
    roots = {base.__module__.partition(".")[0], "refine_pl"}
    found = {}
    for cls in list(_subclasses(base)) or [base]:
        public = not cls.__name__.startswith("_") and cls.__module__.partition(".")[0] in roots
        if public and not inspect.isabstract(cls):
            found[public_path(cls)] = cls
    exported_ones = {path: c for path, c in found.items() if not path.startswith(c.__module__)}
    found = exported_ones or found
    order = sorted(found, key=lambda path: (not path.startswith("refine_pl."), path))
    return {path: found[path] for path in order}


def public_path(cls: type) -> str:
    """The shortest import path of a class: that of the outermost package that exports it."""
    path, package = f"{cls.__module__}.{cls.__qualname__}", cls.__module__
    while "." in package:
        package = package.rpartition(".")[0]
        with contextlib.suppress(ImportError):
            if getattr(importlib.import_module(package), cls.__name__, None) is cls:
                path = f"{package}.{cls.__name__}"
    return path


def component_rule(base: type) -> str:
    """What may be named where a ``base`` belongs, in words."""
    names = list(known_classes(base))
    return f"{describe(base)}: {some(names)}" if names else describe(base)


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    text = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{text} and {more} more (see --help)" if more > 0 else text


def _import_object(base: type, path: str, where: str) -> Any:
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            what = f"{path} cannot be imported: there is no module {error.name}"
            raise _no_such_class(base, path, what, where) from error
        raise _broken(module_name, error, where) from error
    except Exception as error:
        raise _broken(module_name, error, where) from error
    if not hasattr(module, name):
        what = f"{path} cannot be imported: {module_name} has no {name}"
        raise _no_such_class(base, path, what, where, vars(module).values())
    return getattr(module, name)


def _no_such_class(
    base: type, path: str, what: str, where: str, also: Iterable[Any] = ()
) -> ConfigError:
    known = list(known_classes(base))
    for cls in also:
        if inspect.isclass(cls) and issubclass(cls, base) and not inspect.isabstract(cls):
            known.append(f"{path.rpartition('.')[0]}.{cls.__name__}")
    by_name = {full.rpartition(".")[2]: full for full in known}
    close = nearest(path, known) or by_name.get(nearest(path.rpartition(".")[2], by_name) or "")
    way_out = f"did you mean {close}?" if close else None
    if way_out is None and not path.startswith(("refine_pl.", "torch.", "lightning.")):
        way_out = f"a class of your own is looked for from the folder {os.getcwd()}"
    return ConfigError(what, where=where, allowed=component_rule(base), way_out=way_out)


def _broken(module: str, error: Exception, where: str) -> ConfigError:
    """A module that raises when it is imported, with the file and the line that do."""
    frames = traceback.extract_tb(error.__traceback__)
    last = [f"{f.filename}, line {f.lineno}" for f in frames if not f.filename.startswith("<")][-1]
    place = "" if isinstance(error, SyntaxError) else f" ({last})"  # its own text names both
    text = f"{type(error).__name__}: {error}{place}"
    return ConfigError(f"{module} cannot be imported: {text}", where=where)


def _subclasses(cls: type) -> Iterable[type]:
    direct: list[type] = cls.__subclasses__()
    for subclass in direct:
        yield from (subclass, *_subclasses(subclass))
