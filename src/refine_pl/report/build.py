"""From folders to files: read, lay out, draw, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from refine_pl.errors import ConfigError
from refine_pl.report.html import render_html
from refine_pl.report.markdown import FIGURES, figures_of, render_markdown
from refine_pl.report.page import Block, Page
from refine_pl.report.reading import Run, open_runs
from refine_pl.report.sections.ablation import ablations
from refine_pl.report.sections.arms import arms, verdicts
from refine_pl.report.sections.comparison import comparisons
from refine_pl.report.sections.evaluation import evaluations
from refine_pl.report.sections.overview import overview
from refine_pl.report.sections.rollouts import entropy_maps, reward_distributions, rollouts
from refine_pl.report.sections.settings import differing_settings
from refine_pl.report.sections.training import curves, validations
from refine_pl.whole_files import replace_file

HTML, MARKDOWN = "report.html", "report.md"

SECTIONS: dict[str, Callable[[Sequence[Run]], Iterator[Block]]] = {
    "Verdict": verdicts,
    "Arms": arms,
    "Runs": overview,
    "Settings that differ": differing_settings,
    "Validation": validations,
    "Evaluation": evaluations,
    "Comparison": comparisons,
    "Ablations": ablations,
    "Curves": curves,
    "Reward distributions": reward_distributions,
    "Entropy maps": entropy_maps,
    "Rollouts": rollouts,
}


def write_report(folders: Sequence[str], out: str) -> list[Path]:
    """Read run folders and write a report of them.

    Args:
        folders: of training runs, evaluation runs or sweeps.
        out: folder to write; the files of an earlier report in it are replaced.

    Returns:
        The files: the page as HTML, as Markdown, and its figures.

    Raises:
        UserError: a folder cannot be used, or ``out`` cannot be written.
    """
    page = lay_out(open_runs(folders))
    html, markdown, drawn = (Path(out) / name for name in (HTML, MARKDOWN, FIGURES))
    try:
        drawn.mkdir(parents=True, exist_ok=True)
        if markdown.is_file():  # of the figures those that the older report shows, no other file
            for name in figures_of(markdown.read_text(encoding="utf-8", errors="replace")):
                (drawn / name).unlink(missing_ok=True)
        text, figures = render_html(page, drawn)
        replace_file(html, text)
        replace_file(markdown, render_markdown(page))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}", where="--out") from error
    return [html, markdown, *figures]


def lay_out(runs: Sequence[Run]) -> Page:
    """All sections that these runs have something for."""
    names = [run.label for run in runs]
    title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    found = {name: list(blocks(runs)) for name, blocks in SECTIONS.items()}
    return Page(
        f"Report: {title}",
        f"refine-pl {version('refine-pl')}, {time.strftime('%Y-%m-%d %H:%M')}",
        names,
        {name: blocks for name, blocks in found.items() if blocks},
    )
