"""``refine-pl report``: run folders as a page that can be shown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from refine_pl.errors import ConfigError, nearest

_HELP = """Writes report.html (one file, which needs nothing else), report.md and figures/*.png of
training runs, evaluation runs and sweeps: curves, rewards, entropy maps, rollouts, validation and
evaluation tables beside the paper's rows, and the paired difference of any two evaluations."""


def main(argv: Sequence[str]) -> int:
    """Read, write, and print the names of the files.

    Raises:
        UserError: a folder cannot be used.
    """
    parser = _Parser(prog="refine-pl report", description=_HELP, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    parser.add_argument("--out", default="report", help="folder to write (default: report)")
    args = parser.parse_args(argv)
    from refine_pl.report.build import write_report  # --help must not wait for it

    written = write_report(args.runs, args.out)
    for file in (written.html, written.markdown):
        sys.stdout.write(f"{file}\n")
    if written.figures:
        sys.stdout.write(f"{written.figures[0].parent}: {len(written.figures)} figures\n")
    return 0


class _Parser(argparse.ArgumentParser):
    """Refusals are errors of this project."""

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        unknown = [word for word in message.split() if word.startswith("--")]
        close = nearest(unknown[0], known) if "unrecognized" in message and unknown else None
        raise ConfigError(
            message,
            where="command line",
            allowed="refine-pl report RUN [RUN ...] [--out FOLDER]",
            way_out=f"did you mean {close}?" if close else None,
        )
