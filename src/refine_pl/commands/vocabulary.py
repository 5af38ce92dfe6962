"""A fresh backbone takes the size of its vocabulary and its end of text from the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from refine_pl.commands.config_sources import Source, all_values, since_class
from refine_pl.commands.own_defaults import own_defaults
from refine_pl.tokenizers import Tokenizer
from refine_pl.training.trusted_classes import classes_alone

_BACKBONE = "model.backbone"
_FOLLOWING = ("vocab_size", "eos_token_id")


def follow_tokenizer(config: Namespace, sources: Sequence[Source]) -> dict[str, int | None]:
    """What the tokenizer of the data says about options of the backbone that nobody gave.

    Args:
        config: parsed settings. The options are set there.
        sources: where settings were given.

    Returns:
        The options by name.

    Raises:
        DataError: the tokenizer cannot be loaded.
    """
    backbone = config.model.backbone
    options = backbone.get("init_args") if isinstance(backbone, Namespace) else None
    if not isinstance(options, Namespace):
        return {}
    given = since_class(sources, _BACKBONE)
    left_out = [n for n in _FOLLOWING if n in options and not _is_given(n, given)]
    spec = next(_tokenizers(config.get("data")), None) if left_out else None
    if spec is None:
        return {}
    tokenizer = made(spec)
    found = {name: getattr(tokenizer, name) for name in left_out}
    for name, value in found.items():
        options[name] = value
    return found


def printed_options(
    parser: ArgumentParser, argv: Sequence[str], sources: Sequence[Source]
) -> list[str]:
    """What :func:`follow_tokenizer` sets, as options, where the settings are to be printed.

    The parser prints them and leaves before anything can be set. None where a run would be refused.

    Args:
        parser: of the whole command line.
        argv: the name of the subcommand and its options.
        sources: where settings were given.
    """
    kept = [word for word in argv if not word.startswith("--print_config")]
    if len(kept) == len(argv):
        return []
    with suppress(Exception), own_defaults(), classes_alone():
        found = follow_tokenizer(parser.parse_args(kept)[kept[0]], sources)
        return [
            f"--{_BACKBONE}.init_args.{name}={'null' if value is None else value}"
            for name, value in found.items()
        ]
    return []


def made(spec: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a configuration names.

    Args:
        spec: ``class_path`` and ``init_args``.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Tokenizer, "tokenizer")
    tokenizer: Tokenizer = parser.instantiate(parser.parse_object({"tokenizer": spec})).tokenizer
    return tokenizer


def _is_given(name: str, sources: Sequence[Source]) -> bool:
    keys = (f"{_BACKBONE}.init_args.{name}", f"{_BACKBONE}.{name}")
    return any(all_values(source, key) for source in sources for key in keys)


def _tokenizers(part: Any) -> Iterator[dict[str, Any]]:
    """The tokenizers below a part of the parsed settings."""
    values = vars(part) if isinstance(part, Namespace) else part
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if name == "tokenizer" and isinstance(value, Namespace):
            yield value.as_dict()
        else:
            yield from _tokenizers(value)
