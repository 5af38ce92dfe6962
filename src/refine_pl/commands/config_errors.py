"""Turns a refused configuration into a few lines: file, key, value, rule and the nearest name.

The parser reports only the outermost key, and dozens of lines of type alternatives. So when it has
refused something, and only then, the sources are walked again beside what the parser accepts, to
find the first key that is wrong. What the walk does not recognise is reported in the parser's own
words, shortened.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
_NOISE = (
    *("Subtypes:", "Errors:", "Given value", "Does not validate", "Subclass types expect"),
    *("- a class path", "- a dict with", "- Expected a <class 'NoneType'>"),
)
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
    lines = [line for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not line.strip().startswith(_NOISE)] or lines
    return "\n".join(line[:300] for line in kept[:6])


class _NullError(ConfigError):
    """A null where the type has none."""


@dataclasses.dataclass
class _Slot:
    """A class that was chosen for a key."""

    cls: type
    path: str
    arguments: Group  # what its init_args may be
    given: set[str]  # those that a source or a default gives


class _Walk:
    """Looks for the first wrong key, in the order in which the settings were given."""

    def __init__(self, root: Group) -> None:
        self._root = root
        self._slots: dict[Key, _Slot] = {}
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
        parts = schema.alternatives(hint)
        base = next((b for b in map(schema.component_base, parts) if b), None)
        for part in parts:
            items, values = schema.item_hint(part), schema.value_hint(part)
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
            self._component(*base, value, key, source, default)
            return
        if schema.accepts(hint, value):
            if base is not None and isinstance(value, str):  # the options after it may be its own
                with contextlib.suppress(ConfigError):
                    self._component(*base, value, key, source, default)
            return
        words = schema.choices(hint)
        classes = {} if base is None else _by_bare_name(base[0])
        if base is not None and isinstance(value, str) and (not words or "." in value):
            self._component(*base, value, key, source, default)
            return
        close = nearest(value, [*words, *classes]) if isinstance(value, str) else None
        refused = _NullError if value is None else ConfigError
        raise refused(
            f"{dotted(key)} is {_shown(value)}",
            where=source.where(key),
            allowed=_rule(hint),
            way_out=f"did you mean {classes.get(close, close)}?" if close else None,
        )

    def _component(
        self, base: type, positional: int, value: Any, key: Key, source: Source, default: Any
    ) -> None:
        spec: dict[str, Any] = {"class_path": value} if isinstance(value, str) else dict(value)
        arguments = {name: item for name, item in spec.items() if name not in _SPEC}
        if not source.on_command_line:
            _refuse_beside_init_args(spec, arguments, key, source)
        slot = self._slots.get(key)
        path = spec.get("class_path") or (slot and slot.path) or _plain(default).get("class_path")
        if path is None and not inspect.isabstract(base) and schema.class_schema(base, positional):
            path = public_path(base)
        if path is None:
            close = nearest(str(key[-1]), self._names.get(key[:-1], set()) - {key[-1]})
            raise ConfigError(
                f"{dotted(key)} has no class_path",
                where=source.where(key),
                allowed=component_rule(base),
                way_out=f"did you mean {dotted((*key[:-1], close))}?" if close else None,
            )
        cls = find_class(base, path, dotted(key), source.where((*key, "class_path")))
        if cls is None:
            return
        if slot is None or slot.cls is not cls:
            path = path if "." in path else public_path(cls)
            given = set(_plain(_plain(default).get("init_args"))) if slot is None else set()
            slot = _Slot(cls, path, schema.class_schema(cls, positional), given)
            self._slots[key] = slot
        if isinstance(spec.get("init_args"), Mapping):
            arguments = {**arguments, **spec["init_args"]}
        slot.given.update(name.partition(".")[0] for name in arguments)
        inner = (*key, "init_args") if "init_args" in spec else key
        self._group(slot.arguments, arguments, inner, source, slot.path)

    def _unknown(
        self, name: str, group: Group, key: Key, source: Source, owner: str
    ) -> ConfigError:
        close = nearest(name, group)
        if not close:
            everywhere = (dotted(path) for path, _ in _settings(self._root))
            close = next((full for full in everywhere if full.endswith(f".{name}")), None)
        of = f" of {owner}" if owner else ""
        return ConfigError(
            f"{dotted(key)} is not a known key",
            where=source.where(key),
            allowed=f"the keys{of}: {some(group)}" if group else f"nothing: no keys{of}",
            way_out=f"did you mean {close}?" if close else None,
        )

    def _missing(self, sources: Sequence[Source], required: Sequence[str]) -> None:
        """Required keys that no source gives."""
        files = ", ".join(dict.fromkeys(s.name for s in sources if not s.on_command_line))
        missed = [(k, s, "") for k, s in _settings(self._root) if dotted(k) in required]
        for key, slot in self._slots.items():
            at = key if dataclasses.is_dataclass(slot.cls) else (*key, "init_args")
            missed += [
                ((*at, *inner), setting, f"; {slot.path} needs it")
                for inner, setting in _settings(slot.arguments)
                if setting.required and inner[0] not in slot.given
            ]
        for key, setting, why in missed[:1]:
            raise ConfigError(
                f"{dotted(key)} is missing{why}",
                where=files or "no --config was given",
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


def _refuse_beside_init_args(
    spec: Mapping[str, Any], arguments: Mapping[str, Any], key: Key, source: Source
) -> None:
    """In a file, arguments of a class that is named go under ``init_args``."""
    for name in arguments:
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


def _by_bare_name(base: type) -> dict[str, str]:
    return {path.rpartition(".")[2]: path for path in known_classes(base)}


def _rule(hint: Any) -> str:
    """What may be given, with the names of classes after the words."""
    base = next((b for b in map(schema.component_base, schema.alternatives(hint)) if b), None)
    if base is None:
        return schema.describe(hint)
    words = ", ".join(schema.choices(hint))
    return f"{words}; or {component_rule(base[0])}" if words else component_rule(base[0])


def _settings(group: Group, key: Key = ()) -> Iterable[tuple[Key, Setting]]:
    for name, known in group.items():
        if isinstance(known, Setting):
            yield (*key, name), known
        else:
            yield from _settings(known, (*key, name))


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= _VALUE_SHOWN else text[:_VALUE_SHOWN] + " ..."


def _has_null(values: Any) -> bool:
    if isinstance(values, Mapping):
        return any(map(_has_null, values.values()))
    return any(map(_has_null, values)) if isinstance(values, list) else values is None


def _plain(default: Any) -> Mapping[str, Any]:
    """A default that may be a mapping, a namespace or neither."""
    if isinstance(default, Namespace):
        return default.as_dict()
    return default if isinstance(default, Mapping) else {}
