"""Settings that are NaN or infinite: no arithmetic goes on from them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import Namespace

from refine_pl.commands.config_rules import find_class
from refine_pl.commands.config_sources import Key, Source, dotted, last_value
from refine_pl.errors import ConfigError

# Here infinity means: no bound, or never. NaN means nothing anywhere.
MAY_BE_INFINITE = ("gradient_clip", "line_every_s")


def refuse_not_finite(config: Namespace, sources: Sequence[Source]) -> None:
    """Refuse every number of a parsed configuration that is NaN or infinite, at any depth.

    Infinity passes where it means something (:data:`MAY_BE_INFINITE`), and where it is what an
    argument of a class is if it is left out: that class knows what to do with it.

    Args:
        config: all settings of a run, parsed.
        sources: where they were given.

    Raises:
        ConfigError: naming the key, and the file and the line if one gives it.
    """
    for key, value, usual in _numbers(config, (), None):
        if math.isfinite(value) or value == usual:
            continue
        if key[-1] in MAY_BE_INFINITE and value == math.inf:
            continue
        name = dotted(key)
        given = [s for s in sources if last_value([s], _head(key)) is not None]
        raise ConfigError(
            f"{name} is {value}",
            where=given[-1].where(key) if given else None,
            allowed="a finite number",
        )


def _head(key: Key) -> str:
    """The first words of a key, up to a list: options and files may give the rest as one value."""
    return str(key[0]) if len(key) == 1 else f"{key[0]}.{key[1]}"


def _numbers(value: Any, key: Key, usual: Any) -> Iterator[tuple[Key, float, Any]]:
    """The key of every float below ``value``, the number, and the default of the argument."""
    if isinstance(value, float):
        yield key, value, usual
    elif isinstance(value, Namespace | Mapping):
        items = vars(value) if isinstance(value, Namespace) else value
        path = items.get("class_path")
        for name, item in items.items():
            if name == "init_args" and isinstance(path, str):
                inner = vars(item) if isinstance(item, Namespace) else item
                defaults = _defaults(path)
                for argument, given in (inner or {}).items():
                    yield from _numbers(given, (*key, name, argument), defaults.get(argument))
            else:
                yield from _numbers(item, (*key, str(name)), None)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, (*key, index), None)


def _defaults(path: str) -> dict[str, Any]:
    """The defaults of the arguments of a class and its bases, by name."""
    cls = find_class(object, path, "class_path", "class_path") if "." in path else None
    found: dict[str, Any] = {}
    for base in reversed(getattr(cls, "__mro__", ())):
        try:
            parameters = inspect.signature(base.__init__).parameters
        except (TypeError, ValueError):  # written in C
            continue
        found |= {name: p.default for name, p in parameters.items()}
    return found
