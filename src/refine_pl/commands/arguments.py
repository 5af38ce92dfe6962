"""The parser of subcommands with a few plain options."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from refine_pl.errors import ConfigError, did_you_mean

NEGATIVE = re.compile(r"-(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?$|-(inf|nan)$", re.IGNORECASE)
"""What is a value after an option, and no option: argparse's own knows no exponents."""


class Arguments(argparse.ArgumentParser):
    """Like argparse's, but what it refuses is an error of this project.

    Args:
        other: what to say where an option is not known, and no known one is spelt like it.
        settings: of argparse's parser.
    """

    def __init__(self, *, other: str | None = None, **settings: str) -> None:
        self._other = other
        super().__init__(allow_abbrev=False, **settings)  # type: ignore[arg-type]
        self._negative_number_matcher = NEGATIVE

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and remember what was given."""
        self._given = [str(word).partition("=")[0] for word in args or ()]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Refuse.

        Raises:
            ConfigError: with the nearest option.
        """
        known = [option for action in self._actions for option in action.option_strings]
        unknown = [word for word in self._given if word.startswith("--") and word not in known]
        if "required" in message and unknown:  # one that is missing may be one that is misspelt
            message = f"unrecognized arguments: {unknown[0]}"
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        raise ConfigError(
            message,
            where="command line",
            allowed=usage,
            way_out=did_you_mean(unknown[0] if unknown else "", known, self._other),
        )
