"""``refine-pl report``: run folders as a page that can be shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from refine_pl.commands.arguments import Arguments

_HELP = """Writes report.html (one file, which needs nothing else), report.md and figures/*.png of
training runs, evaluation runs and sweeps: curves, rewards, entropy maps, rollouts, validation and
evaluation tables beside the paper's rows, and the paired difference of any two evaluations."""


def main(argv: Sequence[str]) -> int:
    """Read, write, and print the names of the files.

    Raises:
        UserError: a folder cannot be used.
    """
    parser = Arguments(prog="refine-pl report", description=_HELP)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    parser.add_argument("--out", default="report", help="folder to write (default: report)")
    args = parser.parse_args(argv)
    from refine_pl.report.build import write_report  # --help must not wait for it

    html, markdown, *figures = write_report(args.runs, args.out)
    sys.stdout.write(f"{html}\n{markdown}\n")
    if figures:
        count = f"{len(figures)} figure{'s' if len(figures) > 1 else ''}"
        sys.stdout.write(f"{figures[0].parent}: {count}\n")
    return 0
