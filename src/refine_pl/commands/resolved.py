"""The configuration that a command would run with, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from refine_pl.commands.lightning_cli import RefineCLI


class _ParsedOnly(RefineCLI):
    """Stops after the arguments are parsed: no seed is set and nothing is made."""

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        """Nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def resolve(argv: Sequence[str]) -> dict[str, Any]:
    """All settings of ``refine-pl argv``, defaults included, as plain values.

    Args:
        argv: a method of the trainer, and its options.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    cli = _ParsedOnly(argv)
    text = cli._parser(argv[0]).dump(cli.config[argv[0]], skip_none=False)
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings
