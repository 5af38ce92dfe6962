"""Where the settings of a run were given: configuration files, in order, and the command line.

The parser merges everything into one tree and forgets where a value came from. What is kept here is
used to say it: the file and the line of every key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from refine_pl.errors import ConfigError, did_you_mean
from refine_pl.parsing import TextError, parse_yaml, parse_yaml_nodes
from refine_pl.recipes import recipes

Key = tuple[str | int, ...]  # ("trainer", "callbacks", 0, "init_args", "save_top_k")

_SUFFIXES = (".yaml", ".yml", ".json")
_FLAGS = {"-h", "--help", "--print_config"}  # options that stand alone


@dataclass(frozen=True)
class Source:
    """Settings that were given in one place.

    Args:
        name: how a person would call the place.
        values: the settings, nested.
        lines: the line of each key, for files.
        base: the key that the whole of ``values`` belongs under.
        option: ``--model.seed``, if it is an option. There the names ``init_args`` may be left
            out: ``--model.selector.min_prefix 8``.
    """

    name: str
    values: dict[str, Any]
    lines: Mapping[Key, int] = field(default_factory=dict)
    base: Key = ()
    option: str = ""

    def where(self, key: Key) -> str:
        """The file and the line of ``key``, or of what is nearest around it."""
        inner = key[len(self.base) :]
        for length in range(len(inner), 0, -1):
            line = self.lines.get(inner[:length])
            if line is not None:
                return f"{self.name}, line {line}"
        return self.name

    def opened(self, value: Any, key: Key) -> tuple[Any, Source]:
        """The value of ``key``, and where it is given: a group may be the name of its file.

        Raises:
            ConfigError: the file is there and cannot be used.
        """
        if isinstance(value, str) and value.endswith(_SUFFIXES):
            file = (Path() if self.option else Path(self.name).parent) / value
            if file.is_file():
                nested = read_file(file, key)
                return nested.values, nested
        return value, self


def dotted(key: Key) -> str:
    """``trainer.callbacks[0].init_args``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def read_sources(argv: Sequence[str]) -> list[Source]:
    """The places that the options ``argv`` of a subcommand take settings from, in their order.

    Raises:
        ConfigError: a file cannot be read or is not a mapping, or an argument is not an option.
    """
    sources = []
    for option, value in _options(argv):
        if option in ("-c", "--config"):
            sources.append(_config(value))
        else:
            values: Any = value
            if value != "-":  # standard input; in YAML a list of nothing
                with suppress(TextError):  # then it is a text
                    values = parse_yaml(value)
            for part in reversed(option.removeprefix("--").removesuffix("+").split(".")):
                values = {part: values}
            sources.append(Source(f"command line, {option}", values, option=option))
    return sources


def read_file(path: str | os.PathLike[str], base: Key = ()) -> Source:
    """The settings of one YAML or JSON file.

    Raises:
        ConfigError: it cannot be read, is not YAML, is not a mapping, or gives a key twice.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from error
    return _parse(text, str(path), base)


def last_value(sources: Sequence[Source], key: str) -> Any:
    """What the last of ``sources`` that sets the dotted ``key`` sets it to, or None."""
    values = [value for source in sources for value in all_values(source, key)]
    return values[-1] if values else None


def given_as_option(sources: Sequence[Source], key: str) -> bool:
    """Whether an option, not a file, sets the dotted ``key``."""
    return any(source.option and all_values(source, key) for source in sources)


def all_values(source: Source, key: str, values: Any = None) -> list[Any]:
    """What a source sets the dotted ``key`` to, in all of its values or in these."""
    values, source = source.opened(source.values if values is None else values, ())
    found = []
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if name == key:
            found.append(value)
        elif key.startswith(f"{name}.") and value is not None:
            found += all_values(source, key.removeprefix(f"{name}."), value)
    return found


def texts(values: Any, source: Source) -> Iterator[str]:
    """All text below ``values``, which ``source`` gives."""
    values, source = source.opened(values, ())
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping | list):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from texts(value, source)


def given_in(sources: Sequence[Source], key: Key) -> str | None:
    """Where the last of ``sources`` that sets ``key`` sets it; None if none does."""
    names = [part for part in key if isinstance(part, str)]
    for source in reversed(sources):
        if all_values(source, ".".join(names)):
            return source.where(key)
    return None


def since_class(sources: Sequence[Source], key: str) -> Sequence[Source]:
    """The sources from the last one on that names the class of ``key``; it drops earlier ones."""
    for number in reversed(range(len(sources))):
        given = all_values(sources[number], f"{key}.class_path") + all_values(sources[number], key)
        if any(isinstance(value, str) for value in given):
            return sources[number:]
    return sources


def name_of_run(sources: Sequence[Source]) -> str | None:
    """The name of the last configuration file among the sources, without its suffix."""
    files = [source.name for source in sources if source.name.endswith(_SUFFIXES)]
    return Path(files[-1]).stem if files else None


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options with their values, as argparse pairs them."""
    words = list(argv)
    while words:
        option, equals, value = words.pop(0).partition("=")
        follows = bool(words) and not words[0].startswith("--")
        if option.endswith(".help") and follows and not equals:
            words.pop(0)  # the name of a class
        if option.endswith(".help") or option in _FLAGS:
            continue
        if not option.startswith("--") and option != "-c":
            raise ConfigError(
                f"{option!r} is not an option",
                where="command line",
                allowed="options of the form --model.num_segments 8",
                way_out=f"--config {option}" if option.endswith((".yaml", ".yml")) else None,
            )
        if not equals and not follows:
            raise ConfigError(f"{option} has no value", where="command line")
        yield option, value if equals else words.pop(0)


def _config(value: str) -> Source:
    # A configuration may also be given as text in the place of a file name.
    if not os.path.exists(value) and ("\n" in value or ": " in value or value.startswith("{")):
        return _parse(value, "command line, --config", ())
    return read_file(value)


def _parse(text: str, name: str, base: Key) -> Source:
    try:
        node, values = parse_yaml_nodes(text)
    except TextError as error:
        raise ConfigError(
            f"the configuration is not valid YAML: {error.problem}",
            where=name if error.line is None else f"{name}, line {error.line}",
            way_out="look at the brackets, colons and quotes of this line and the one before",
        ) from error
    if not isinstance(node, yaml.MappingNode):
        kind = "empty" if values is None else f"a {type(values).__name__}, not a mapping of keys"
        allowed = "a mapping with the keys model, data, trainer, ..."
        raise ConfigError(f"the configuration is {kind}", where=name, allowed=allowed)
    return Source(name, values, dict(_lines(node, (), name)), base)


def _lines(node: yaml.Node, key: Key, name: str) -> Iterator[tuple[Key, int]]:
    """The line of every key below ``node``; a key that is given twice is an error."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _lines(item, (*key, index), name)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for name_node, item in node.value:
        inner = (*key, str(name_node.value))
        line = name_node.start_mark.line + 1
        if name_node.value in first and name_node.value != "<<":
            raise ConfigError(
                f"{dotted(inner)} is given twice",
                where=f"{name}, lines {first[name_node.value]} and {line}",
                way_out="keep one of the two; YAML would silently take the second",
            )
        first[name_node.value] = line
        yield inner, line
        yield from _lines(item, inner, name)


def _unreadable(file: Path, error: Exception) -> ConfigError:
    if file.is_dir():
        return ConfigError(f"{file} is a folder, not a configuration file", where="--config")
    if file.exists():
        return ConfigError(f"{file} cannot be read: {error}", where="--config")
    near = {p.stem: str(p) for p in file.parent.glob("*.yaml")} | {name: name for name in recipes()}
    return ConfigError(
        f"there is no configuration file {file}",
        where="--config",
        allowed="a file, or the name of a recipe: `refine-pl recipes` lists them",
        way_out=did_you_mean(file.stem, near, f"looked from {Path.cwd()}"),
    )
