"""What ``refine-pl fit --help`` shows first: this project's own settings, then Lightning's."""

from __future__ import annotations

import argparse

from jsonargparse import ArgumentParser, DefaultHelpFormatter

# Options that begin a group of settings, in the order that people look for them.
_ORDER = ("--model", "--data", "--phase", "--ckpt_path", "--trainer")

_TITLES = {
    "--model": "the model, the parts of the algorithm and their settings",
    "--data": "the data",
    "--phase": "phase, schedule and callbacks",
    "--ckpt_path": "the checkpoint to go on from",
    "--trainer": "Lightning's trainer",
}


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the text before the options."""


def arrange(parser: ArgumentParser) -> None:
    """Put the groups of settings in the order that people look for them, and name them for people.

    Args:
        parser: of a subcommand; only its help changes.
    """
    parser.formatter_class = _Formatter
    command = parser.prog.split()[-1]
    parser.usage = f"refine-pl {command} --config FILE_OR_RECIPE [--OPTION VALUE ...]"
    places = {}
    for group in parser._action_groups:
        options = {option for action in group._group_actions for option in action.option_strings}
        first = next((option for option in _ORDER if option in options), None)
        places[group.title] = -1 if first is None else _ORDER.index(first)
        if first is not None:
            group.title = _TITLES[first]
            places[group.title] = _ORDER.index(first)
    groups = sorted(parser._action_groups, key=lambda group: places[group.title])
    parser._action_groups = groups
