"""Turns a refused configuration into a few lines: file, key, value, rule and the nearest name.

The parser reports only the outermost key, and dozens of lines of type alternatives. So when it has
refused something, and only then, the sources are walked again beside what the parser accepts, to
find the first key that is wrong. What the walk does not recognise is reported in the parser's own
words, shortened.
"""

from __future__ import annotations

import contextlib
import inspect
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._required import iter_required_keys
from jsonargparse._util import get_import_path

from refine_pl.commands import config_rules as rules
from refine_pl.commands.config_sources import Key, Source, dotted, given_in
from refine_pl.errors import ConfigError, did_you_mean

_VALUE_SHOWN = 100  # characters
_LINES_SHOWN = 6  # of the parser's own messages
_SPEC = ("class_path", "init_args", "dict_kwargs")


def explain(error: Exception, parser: ArgumentParser, sources: Sequence[Source]) -> ConfigError:
    """What is wrong with the settings that ``parser`` refused with ``error``.

    Raises:
        Exception: ``error`` itself, if it is not a refusal and the settings are right: a fault of
            the program.
    """
    try:
        _Walk(parser).run(sources)
    except ConfigError as found:
        return found
    except Exception as fault:
        # A message that is less exact is better than a traceback of the search for a better one.
        error.add_note(f"while looking for the key: {fault!r}")
    if not isinstance(error, ArgumentError):
        raise error
    lines = [line[:300] for line in str(error).splitlines() if line.strip()]
    names = ", ".join(dict.fromkeys(source.name for source in sources))
    return ConfigError("\n".join(lines[:_LINES_SHOWN]), where=names or None)


def refuse_what_the_parser_lets_through(parser: ArgumentParser, sources: Sequence[Source]) -> None:
    """Find a null where the type has none, and names in a mapping that are not texts.

    Raises:
        ConfigError: naming the first one.
    """
    if not any(_is_suspect(source.values) for source in sources):
        return
    try:
        _Walk(parser).run(sources)
    except _LetThroughError:
        raise
    except Exception:
        return  # the parser has accepted everything else


def _is_suspect(values: Any) -> bool:
    if isinstance(values, Mapping):
        return any(not isinstance(k, str) or _is_suspect(v) for k, v in values.items())
    return values is None or (isinstance(values, list) and any(map(_is_suspect, values)))


class _LetThroughError(ConfigError):
    """Something that the parser does not refuse although the type does."""


def check_groups(config: Namespace, parser: ArgumentParser) -> None:
    """Refuse ``model: 3``: the parser takes any value in the place of a group of keys.

    Raises:
        ArgumentError: naming the group; :func:`explain` says where it was given.
    """
    groups = {dest.partition(".")[0] for dest in _Owner(parser).settings if "." in dest}
    for name in groups:
        if not isinstance(config.get(name), Namespace):
            raise ArgumentError(None, f"{name} is {_shown(config.get(name))}, not a mapping")


def check_plain_values(config: Any, sources: Sequence[Source], key: Key = ()) -> None:
    """Refuse numbers and texts that no setting can have, and libraries stumble over.

    Args:
        config: parsed settings, or a part of them.
        sources: where they were given.
        key: of the part.

    Raises:
        ConfigError: at an integer of more than 64 bits, or a text with a NUL.
    """
    values = vars(config) if isinstance(config, Namespace) else config
    if isinstance(values, Mapping):
        for name, value in values.items():
            check_plain_values(value, sources, (*key, name))
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            check_plain_values(value, sources, (*key, index))
    elif isinstance(values, int) and not -(2**63) <= values < 2**63:
        digits = len(str(abs(values)))
        raise ConfigError(
            f"{dotted(key)} is an integer of {digits:,} digits",
            where=given_in(sources, key),
            allowed="integers of 64 bits",
        )
    elif isinstance(values, str) and "\0" in values:
        raise ConfigError(
            f"{dotted(key)} is {_shown(values)}",
            where=given_in(sources, key),
            allowed="text without NUL characters",
        )


def check_seed(seed: int | bool, sources: Sequence[Source]) -> None:
    """Refuse a seed that numpy has no place for."""
    if not 0 <= seed < 2**32:
        raise ConfigError(
            f"seed_everything is {seed}",
            where=given_in(sources, ("seed_everything",)),
            allowed="an integer from 0 to 4294967295; true for a random one, false for none",
        )


@dataclass
class _Owner:
    """What arguments belong to: the whole configuration, or a class that was chosen for a key."""

    parser: ArgumentParser
    cls: type | None = None
    path: str = ""
    key: Key = ()  # its arguments are below it
    given: set[str] = field(default_factory=set)  # arguments that a source or a default gives

    def __post_init__(self) -> None:
        self.settings: dict[str, Any] = {
            action.dest: action
            for action in self.parser._actions
            if hasattr(action, "_typehint") and not action.dest.endswith(".help")
        }

    def names(self, prefix: str) -> list[str]:
        """The next words of the dotted names that begin with ``prefix``."""
        found = (dest for dest in self.settings if dest.startswith(prefix))
        return list(dict.fromkeys(d.removeprefix(prefix).partition(".")[0] for d in found))

    def missing(self) -> list[str]:
        """Arguments that must be given and are not."""
        required = [d for d in iter_required_keys(self.parser) if d in self.settings]
        return [d for d in required if d not in self.given and self.settings[d].default is None]


def _arguments(cls: type, positional: int) -> ArgumentParser:
    """A parser of the ``init_args`` of a class, without the first ``positional`` ones."""
    parser = ArgumentParser(exit_on_error=False)
    skip: set[str | int] = {positional} if positional else set()
    parser.add_class_arguments(cls, None, fail_untyped=False, skip=skip)
    return parser


class _Walk:
    """Looks for the first wrong key, in the order in which the settings were given."""

    def __init__(self, parser: ArgumentParser) -> None:
        self._root = _Owner(parser)
        self._chosen: dict[Key, _Owner] = {}
        self._names: dict[Key, set[str]] = {}  # of the items of a mapping, by its key

    def run(self, sources: Sequence[Source]) -> None:
        """Raise a :class:`ConfigError` if something wrong is found."""
        for source in sources:
            self._group(self._root, source.values, (), source)
        files = ", ".join(dict.fromkeys(s.name for s in sources if not s.option))
        for owner in (self._root, *self._chosen.values()):
            for name in owner.missing():
                raise ConfigError(
                    f"{dotted((*owner.key, name))} is missing"
                    + (f"; {owner.path} needs it" if owner.path else ""),
                    where=files or "no --config was given",
                    allowed=rules.rule(owner.settings[name]._typehint),
                )

    def _group(
        self, owner: _Owner, values: Mapping[str, Any], key: Key, source: Source, prefix: str = ""
    ) -> None:
        names = owner.names(prefix)
        for full, value in values.items():
            # A file may also write model.num_segments: 8
            name, _, rest = str(full).removesuffix("+").partition(".")
            value = {rest: value} if rest else value
            inner = (*key, name)
            if name not in names:
                raise self._unknown(name, names, inner, source, owner.path or dotted(key))
            setting = owner.settings.get(prefix + name)
            if setting is not None:
                owner.given.add(prefix + name)
                self._value(setting._typehint, value, inner, source, setting.default)
                continue
            nested, origin = source.opened(value, inner)
            prefix_inside = f"{prefix}{name}."
            if isinstance(nested, Mapping):
                self._group(owner, nested, inner, origin, prefix_inside)
            elif nested is not None or source.option:  # else a heading with nothing below it
                raise ConfigError(
                    f"{dotted(inner)} is {_shown(value)}",
                    where=origin.where(inner),
                    allowed=f"a mapping with the keys {rules.some(owner.names(prefix_inside))}",
                )

    def _unknown(
        self, name: str, names: Sequence[str], key: Key, source: Source, owner: str
    ) -> ConfigError:
        there = [dest for dest in self._root.settings if dest.endswith(f".{name}")]
        elsewhere = min(there, key=lambda dest: dest.count("."), default=None)
        of = f" of {owner}" if owner else ""
        return ConfigError(
            f"{dotted(key)} is not a known key",
            where=source.where(key),
            allowed=f"the keys{of}: {rules.some(names)}" if names else f"nothing: no keys{of}",
            way_out=did_you_mean(name, names, elsewhere and f"did you mean {elsewhere}?"),
        )

    def _value(self, hint: Any, value: Any, key: Key, source: Source, default: Any = None) -> None:
        """Find what is wrong with ``value``, if anything, in the alternative that it looks like."""
        value, source = source.opened(value, key)
        for kind, held in filter(None, map(rules.contents, rules.alternatives(hint))):
            if kind is list and isinstance(value, list | tuple):
                for index, item in enumerate(value):
                    self._value(held, item, (*key, index), source)
                return
            if kind is dict and isinstance(value, Mapping):
                defaults = _plain(default)
                self._names.setdefault(key, set()).update(defaults, map(str, value))
                self._check_names(hint, value, key, source)
                for name, item in value.items():
                    self._value(held, item, (*key, str(name)), source, defaults.get(name))
                return
        base = rules.component_base(hint)
        if base is not None and isinstance(value, Mapping):
            self._component(*base, value, key, source, default)
            return
        fits, words = rules.accepts(hint, value), rules.choices(hint)
        if base is not None and isinstance(value, str) and (fits or not words or "." in value):
            # What fits may be another word; if it is a class, options after it may be its own.
            with contextlib.suppress(*[ConfigError] if fits else []):
                self._component(*base, {"class_path": value}, key, source, default)
            return
        if fits:
            return
        near = {} if base is None else {n: p for n, (p, _) in rules.by_name(base[0]).items()}
        near |= {word: word for word in words}
        raise (_LetThroughError if value is None else ConfigError)(
            f"{dotted(key)} is {_shown(value)}",
            where=source.where(key),
            allowed=rules.rule(hint),
            way_out=did_you_mean(str(value), near),
        )

    def _check_names(self, hint: Any, value: Mapping[Any, Any], key: Key, source: Source) -> None:
        """Refuse ``true: ...`` in a mapping of names: YAML reads some words as other than text."""
        wrong = next((name for name in value if not isinstance(name, str)), None)
        if wrong is None or rules.takes_other_names(hint):
            return
        raise _LetThroughError(
            f"a name in {dotted(key)} is {wrong!r}, not a text",
            where=source.where((*key, str(wrong).lower())),
            way_out=f'put it into quotes: "{str(wrong).lower()}"',
        )

    def _component(
        self,
        base: type,
        positional: int,
        spec: Mapping[str, Any],
        key: Key,
        source: Source,
        default: Any,
    ) -> None:
        """Find what is wrong with a class and its arguments, and remember the class."""
        arguments = {name: item for name, item in spec.items() if name not in _SPEC}
        if not source.option:
            _refuse_beside_init_args(spec, arguments, key, source)
        owner, usual = self._chosen.get(key), _plain(default)
        path = spec.get("class_path") or (owner and owner.path) or usual.get("class_path")
        if path is None and not inspect.isabstract(base) and inspect.signature(base).parameters:
            path = get_import_path(base)
        if path is None:
            others = self._names.get(key[:-1], set()) - {key[-1]}
            raise ConfigError(
                f"{dotted(key)} has no class_path",
                where=source.where(key),
                allowed=rules.class_rule(base),
                way_out=did_you_mean(str(key[-1]), {n: dotted((*key[:-1], n)) for n in others}),
            )
        at = source.where((*key, "class_path"))
        cls = rules.find_class(base, path, dotted(key), at, functions=not positional)
        if cls is None:
            return
        if owner is None or owner.cls is not cls:
            path = path if "." in path else str(get_import_path(cls))
            given = set(_plain(usual.get("init_args"))) if owner is None else set()
            inside = key if is_dataclass(cls) else (*key, "init_args")
            arguments_of = _arguments(cls, positional)
            owner = self._chosen[key] = _Owner(arguments_of, cls, path, inside, given)
        if isinstance(spec.get("init_args"), Mapping):
            arguments = {**arguments, **spec["init_args"]}
        inner = (*key, "init_args") if "init_args" in spec else key
        self._group(owner, arguments, inner, source)


def _refuse_beside_init_args(
    spec: Mapping[str, Any], arguments: Mapping[str, Any], key: Key, source: Source
) -> None:
    """In a file, arguments of a class that is named go under ``init_args``."""
    inside = f"arguments of the class go under {dotted((*key, 'init_args'))}"
    for name in arguments:
        way_out = did_you_mean(name, _SPEC, inside if "class_path" in spec else None)
        if way_out is not None:
            raise ConfigError(
                f"{dotted((*key, name))} is not a known key",
                where=source.where((*key, name)),
                allowed=", ".join(_SPEC),
                way_out=way_out,
            )


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= _VALUE_SHOWN else text[:_VALUE_SHOWN] + " ..."


def _plain(default: Any) -> Mapping[str, Any]:
    """A default that may be a mapping, a namespace or neither."""
    if isinstance(default, Namespace):
        return default.as_dict()
    return default if isinstance(default, Mapping) else {}
