"""Turns a refused configuration into a few lines: file, key, value, rule and the nearest name.

The parser reports only the outermost key, and dozens of lines of type alternatives. So when it has
refused something, and only then, the sources are walked again beside what the parser accepts, to
find the first key that is wrong. What the walk does not recognise is reported in the parser's own
words, shortened.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from refine_pl.commands import config_schema as schema
from refine_pl.commands.config_classes import (
    component_rule,
    find_class,
    known_classes,
    public_path,
    some,
)
from refine_pl.commands.config_schema import Group, Setting
from refine_pl.commands.config_sources import Key, Source, dotted, read_file
from refine_pl.errors import ConfigError, nearest

_VALUE_SHOWN = 100  # characters
_SPEC = ("class_path", "init_args", "dict_kwargs")


def explain(error: Exception, parser: ArgumentParser, sources: Sequence[Source]) -> ConfigError:
    """What is wrong with the settings that ``parser`` refused with ``error``.

    Raises:
        Exception: ``error`` itself, if it is no refusal and the settings are right: a fault of the
            program.
    """
    missed = re.match(r"the following arguments are required: (.*)", str(error))
    required = missed[1].split(", ") if missed else []
    try:
        root = schema.parser_schema(parser)
        # Under a subcommand its name comes first: fit.model.backbone.
        required = [k if k.partition(".")[0] in root else k.partition(".")[2] for k in required]
        _Walk(root).run(sources, required)
    except ConfigError as found:
        return found
    except Exception as fault:
        # A message that is less exact is better than a traceback of the search for a better one.
        error.add_note(f"while looking for the key: {fault!r}")
    if not isinstance(error, ArgumentError):
        raise error
    names = ", ".join(dict.fromkeys(source.name for source in sources))
    return ConfigError(_shortened(str(error)), where=names or None)


def refuse_nulls(parser: ArgumentParser, sources: Sequence[Source]) -> None:
    """Find a null where the type has none; the parser lets it through to the constructor.

    Raises:
        ConfigError: naming the first one.
    """
    if not any(_has_null(source.values) for source in sources):
        return
    try:
        _Walk(schema.parser_schema(parser)).run(sources, ())
    except _NullError:
        raise
    except Exception:
        return  # the parser has accepted everything else


def _shortened(message: str) -> str:
    """The informative lines of one of the parser's messages."""
    noise = (
        "Subtypes:",
        "Errors:",
        "Given value",
        "Does not validate against any",
        "Subclass types expect",
        "- a class path",
        "- a dict with",
        "- Expected a <class 'NoneType'>",
    )
    lines = [line for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not line.strip().startswith(noise)] or lines
    return "\n".join(line[:300] for line in kept[:6])


class _NullError(ConfigError):
    """A null where the type has none."""


class _Walk:
    """Looks for the first wrong key, in the order in which the settings were given."""

    def __init__(self, root: Group) -> None:
        self._root = root
        self._classes: dict[Key, tuple[str, Group, set[str]]] = {}
        # class_path, what its init_args may be, and those that were given, by the key of the slot
        self._names: dict[Key, set[str]] = {}  # of the items of a mapping, by its key

    def run(self, sources: Sequence[Source], required: Sequence[str]) -> None:
        """Raise a :class:`ConfigError` if something wrong is found.

        Args:
            sources: where settings were given.
            required: the dotted keys that the parser missed.
        """
        for source in sources:
            self._group(self._root, source.values, (), source, "")
        self._missing(sources, required)

    def _group(
        self, group: Group, values: Mapping[str, Any], key: Key, source: Source, owner: str
    ) -> None:
        for name, value in values.items():
            name = str(name).removesuffix("+")
            if "." in name:  # a file may also write model.num_segments: 8
                name, _, rest = name.partition(".")
                value = {rest: value}
            inner = (*key, name)
            if name not in group:
                raise self._unknown(name, group, inner, source, owner)
            known = group[name]
            if isinstance(known, Setting):
                self._value(known.hint, value, inner, source, known.default)
                continue
            nested, origin = self._nested_file(value, inner, source)
            if nested is None and not source.on_command_line:
                continue  # a heading with nothing below it
            if not isinstance(nested, Mapping):
                raise ConfigError(
                    f"{dotted(inner)} is {_shown(value)}",
                    where=origin.where(inner),
                    allowed=f"a mapping with the keys {some(known)}",
                )
            self._group(known, nested, inner, origin, dotted(inner))

    def _value(self, hint: Any, value: Any, key: Key, source: Source, default: Any = None) -> None:
        """Find what is wrong with ``value``, if anything, in the alternative that it looks like."""
        value, source = self._nested_file(value, key, source)
        for part in schema.alternatives(hint):
            items, values = schema.item_hint(part), schema.value_hint(part)
            base = schema.component_base(part)
            if items is not None and isinstance(value, list | tuple):
                for index, item in enumerate(value):
                    self._value(items, item, (*key, index), source)
                return
            if values is not None and isinstance(value, Mapping):
                defaults = _plain(default)
                self._names.setdefault(key, set()).update(defaults, map(str, value))
                for name, item in value.items():
                    self._value(values, item, (*key, str(name)), source, defaults.get(name))
                return
            if base is not None and isinstance(value, Mapping):
                slot = self._last_item(key) if source.on_command_line else key
                self._component(*base, value, slot, source, default)
                return
        bases = [b for b in map(schema.component_base, schema.alternatives(hint)) if b]
        if schema.accepts(hint, value):
            if bases and isinstance(value, str):  # remember the class for the options after it
                with contextlib.suppress(ConfigError):
                    self._component(*bases[0], value, key, source, default)
            return
        if bases and isinstance(value, str):
            self._no_other_word(hint, bases[0][0], value, key, source)
            self._component(*bases[0], value, key, source, default)
            return
        refused = _NullError if value is None else ConfigError
        raise refused(
            f"{dotted(key)} is {_shown(value)}",
            where=source.where(key),
            allowed=_rule(hint),
            way_out=_nearest_choice(hint, value),
        )

    def _no_other_word(self, hint: Any, base: type, value: str, key: Key, source: Source) -> None:
        """Where a word or a class may stand, a bare name that is neither is a misspelt one."""
        words = schema.choices(hint)
        names = {path.rpartition(".")[2]: path for path in known_classes(base)}
        if not words or "." in value or value in names:
            return
        close = nearest(value, [*words, *names])
        raise ConfigError(
            f"{dotted(key)} is {_shown(value)}",
            where=source.where(key),
            allowed=f"{', '.join(words)}; or {component_rule(base)}",
            way_out=f"did you mean {names.get(close, close)}?"
            if close
            else f"a class of your own with its module: my_module.{value}",
        )

    def _component(
        self, base: type, positional: int, value: Any, key: Key, source: Source, default: Any
    ) -> None:
        spec: dict[str, Any] = {"class_path": value} if isinstance(value, str) else dict(value)
        arguments = {name: item for name, item in spec.items() if name not in _SPEC}
        for name in () if source.on_command_line else arguments:
            close = nearest(name, _SPEC)
            if close or "class_path" in spec:
                raise ConfigError(
                    f"{dotted((*key, name))} is not a known key",
                    where=source.where((*key, name)),
                    allowed=", ".join(_SPEC),
                    way_out=f"did you mean {close}?"
                    if close
                    else f"arguments of the class go under {dotted((*key, 'init_args'))}",
                )
        path = spec.get("class_path") or self._class_path(key, default)
        if path is None and not inspect.isabstract(base) and schema.class_schema(base, positional):
            path = public_path(base)
        if path is None:
            raise self._no_class(base, key, source)
        cls = find_class(base, path, dotted(key), source.where((*key, "class_path")))
        if cls is None:
            return
        path = path if "." in path else public_path(cls)
        group = schema.class_schema(cls, positional)
        known = self._classes.get(key)
        given = (
            known[2]
            if known and known[0] == path
            else set(_plain(_plain(default).get("init_args")))
        )
        self._classes[key] = (path, group, given)
        if isinstance(spec.get("init_args"), Mapping):
            arguments = {**arguments, **spec["init_args"]}
        given.update(name.partition(".")[0] for name in arguments)
        inner = (*key, "init_args") if "init_args" in spec else key
        self._group(group, arguments, inner, source, path)

    def _last_item(self, key: Key) -> Key:
        """An option may name a list of components, and then means the last of them."""
        items = [k for k in self._classes if k[: len(key)] == key and len(k) - len(key) <= 1]
        items = [k for k in items if k == key or isinstance(k[-1], int)]
        return items[-1] if items else key

    def _class_path(self, key: Key, default: Any) -> str | None:
        if key in self._classes:
            return self._classes[key][0]
        path = _plain(default).get("class_path")
        return path if isinstance(path, str) else None

    def _unknown(
        self, name: str, group: Group, key: Key, source: Source, owner: str
    ) -> ConfigError:
        close = nearest(name, group)
        way_out = f"did you mean {close}?" if close else None
        if not close:
            elsewhere = [full for full in _leaves(self._root) if full.endswith(f".{name}")]
            way_out = f"did you mean {elsewhere[0]}?" if elsewhere else None
        of = f" of {owner}" if owner else ""
        return ConfigError(
            f"{dotted(key)} is not a known key",
            where=source.where(key),
            allowed=f"the keys{of}: {some(group)}" if group else f"nothing: no keys{of}",
            way_out=way_out,
        )

    def _no_class(self, base: type, key: Key, source: Source) -> ConfigError:
        close = nearest(str(key[-1]), self._names.get(key[:-1], set()) - {key[-1]})
        return ConfigError(
            f"{dotted(key)} has no class_path",
            where=source.where(key),
            allowed=component_rule(base),
            way_out=f"did you mean {dotted((*key[:-1], close))}?" if close else None,
        )

    def _missing(self, sources: Sequence[Source], required: Sequence[str]) -> None:
        """Required keys that no source gives."""
        files = ", ".join(dict.fromkeys(s.name for s in sources if not s.on_command_line))
        where = files or "no --config was given"
        for key, setting in _settings(self._root):
            if dotted(key) in required:
                raise ConfigError(
                    f"{dotted(key)} is missing", where=where, allowed=_rule(setting.hint)
                )
        for key, (path, group, given) in self._classes.items():
            for inner, setting in _settings(group):
                if setting.required and inner[0] not in given:
                    raise ConfigError(
                        f"{dotted((*key, 'init_args', *inner))} is missing; {path} needs it",
                        where=where,
                        allowed=_rule(setting.hint),
                    )

    def _nested_file(self, value: Any, key: Key, source: Source) -> tuple[Any, Source]:
        """A group or a component may be given as the name of a file that holds it."""
        if isinstance(value, str) and value.endswith((".yaml", ".yml", ".json")):
            folder = Path() if source.on_command_line else Path(source.name).parent
            if os.path.isfile(folder / value):
                nested = read_file(folder / value, key)
                return nested.values, nested
        return value, source


def _rule(hint: Any) -> str:
    parts = schema.alternatives(hint)
    bases = [base for base in map(schema.component_base, parts) if base]
    if len(bases) == 1 and len(parts) - (type(None) in parts) == 1:
        return component_rule(bases[0][0])
    return schema.describe(hint)


def _nearest_choice(hint: Any, value: Any) -> str | None:
    close = nearest(value, schema.choices(hint)) if isinstance(value, str) else None
    return f"did you mean {close}?" if close else None


def _settings(group: Group, key: Key = ()) -> Iterable[tuple[Key, Setting]]:
    for name, known in group.items():
        if isinstance(known, Setting):
            yield (*key, name), known
        else:
            yield from _settings(known, (*key, name))


def _leaves(group: Group) -> list[str]:
    return [dotted(key) for key, _ in _settings(group)]


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= _VALUE_SHOWN else text[:_VALUE_SHOWN] + " ..."


def _has_null(values: Any) -> bool:
    if isinstance(values, Mapping):
        return any(map(_has_null, values.values()))
    return any(map(_has_null, values)) if isinstance(values, list) else values is None


def _plain(default: Any) -> Mapping[str, Any]:
    """A default that may be a mapping, a namespace or no mapping at all."""
    if isinstance(default, Namespace):
        return default.as_dict()
    return default if isinstance(default, Mapping) else {}
