"""``refine-pl completion``: a script that completes commands, options and recipes in a shell."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from unittest.mock import patch

import shtab

from refine_pl.command_table import COMMANDS
from refine_pl.commands.arguments import Arguments
from refine_pl.recipes import recipes

_HELP = """Prints a script for a shell. For bash, once: refine-pl completion bash >
~/.local/share/bash-completion/completions/refine-pl"""

# Options whose value is a recipe or a file.
_OF_RECIPES = ("--config", "--eval", "--overlays")
_RECIPES = {"bash": "_refine_pl_recipes", "zsh": "_refine_pl_recipes", "tcsh": "f"}
_PREAMBLE = {
    "bash": '_refine_pl_recipes() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
    "zsh": "_refine_pl_recipes() {{ compadd -- {names}; _files }}",
}


class _Found(BaseException):
    """Carries the parser of a command out of the command."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def main(argv: Sequence[str]) -> int:
    """Print the script.

    Raises:
        ConfigError: no such shell.
    """
    parser = Arguments(prog="refine-pl completion", description=_HELP)
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="that is to complete")
    shell = parser.parse_args(argv).shell
    preamble = _PREAMBLE.get(shell, "").format(names=" ".join(recipes()))
    sys.stdout.write(shtab.complete(_whole(), shell, preamble=preamble))
    return 0


def _whole() -> argparse.ArgumentParser:
    """A parser of all commands, which knows their options and not what these mean."""
    whole = argparse.ArgumentParser(prog="refine-pl", add_help=False)
    several = whole.add_subparsers()
    for name, (_, _, line) in COMMANDS.items():
        copy = several.add_parser(name, help=line, add_help=False)
        for action in _parser_of(name)._actions:
            if action.help == argparse.SUPPRESS:
                continue
            takes = "append" if action.nargs != 0 else "store_true"
            names = action.option_strings or [action.dest]
            made = copy.add_argument(*names, action=takes, help=_first_line(action.help))
            if action.nargs != 0:
                made.choices = action.choices
            if set(names) & set(_OF_RECIPES):
                made.complete = _RECIPES  # type: ignore[attr-defined]
    return whole


def _parser_of(name: str) -> argparse.ArgumentParser:
    """The parser whose help ``refine-pl name --help`` shows."""

    def found(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Found(parser)

    module, wants_name, _ = COMMANDS[name]
    run = importlib.import_module(module).main
    with patch.object(argparse.ArgumentParser, "print_help", found):
        try:
            run([name, "--help"] if wants_name else ["--help"])
        except _Found as outcome:
            return outcome.parser
    raise AssertionError(f"refine-pl {name} --help shows no help")


def _first_line(text: str | None) -> str:
    """Of a help text, without what argparse would replace."""
    return (text or "").partition("\n")[0].partition(" (type:")[0].replace("%", "%%")
