"""From folders to files: read, lay out, draw, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from refine_pl.errors import ConfigError
from refine_pl.figures.drawing import DARK, LIGHT, Picture
from refine_pl.report.html import render_html
from refine_pl.report.markdown import FIGURES, figures_of, render_markdown
from refine_pl.report.page import Block, Page, Section
from refine_pl.report.reading import Run
from refine_pl.report.runs import open_runs
from refine_pl.report.sections.ablation import ablations
from refine_pl.report.sections.comparison import comparisons
from refine_pl.report.sections.evaluation import evaluations
from refine_pl.report.sections.overview import overview
from refine_pl.report.sections.rollouts import entropy_maps, reward_distributions, rollouts
from refine_pl.report.sections.settings import differing_settings
from refine_pl.report.sections.training import curves, validations

HTML, MARKDOWN = "report.html", "report.md"

SECTIONS: dict[str, Callable[[Sequence[Run]], Iterator[Block]]] = {
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


@dataclass(frozen=True, slots=True)
class Written:
    """What a report consists of."""

    html: Path
    markdown: Path
    figures: list[Path]


def write_report(folders: Sequence[str], out: str) -> Written:
    """Read run folders and write a report of them.

    Args:
        folders: of training runs, evaluation runs or sweeps.
        out: folder to write; the files of an earlier report in it are replaced.

    Raises:
        UserError: a folder cannot be used, or ``out`` cannot be written.
    """
    page = lay_out(open_runs(folders))
    folder = Path(out)
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        _remove_old_figures(folder)
        return _write(page, folder)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}", where="--out") from error


def lay_out(runs: Sequence[Run]) -> Page:
    """All sections that these runs have something for."""
    names = [run.label for run in runs]
    title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    found = [Section(name, list(blocks(runs))) for name, blocks in SECTIONS.items()]
    return Page(
        f"Report: {title}",
        f"refine-pl {_version()}, {time.strftime('%Y-%m-%d %H:%M')}",
        names,
        [section for section in found if section.blocks],
    )


def _version() -> str:
    try:
        return version("refine-pl")
    except PackageNotFoundError:
        return "(not installed)"


def _write(page: Page, folder: Path) -> Written:
    drawn: dict[str, bytes] = {}
    for picture in page.pictures():
        if picture.name in drawn:
            raise AssertionError(f"two figures are called {picture.name}")
        drawn[picture.name] = picture.png(LIGHT)
    figures = [folder / FIGURES / f"{name}.png" for name in drawn]
    for file, content in zip(figures, drawn.values(), strict=True):
        file.write_bytes(content)

    def png(picture: Picture, dark: bool) -> bytes:
        return picture.png(DARK) if dark else drawn[picture.name]

    html, markdown = folder / HTML, folder / MARKDOWN
    html.write_text(render_html(page, png), encoding="utf-8")
    markdown.write_text(render_markdown(page), encoding="utf-8")
    return Written(html, markdown, figures)


def _remove_old_figures(folder: Path) -> None:
    """Those that the report which is there shows, and nothing else."""
    old = folder / MARKDOWN
    if old.is_file():
        for name in figures_of(old.read_text(encoding="utf-8", errors="replace")):
            (folder / FIGURES / name).unlink(missing_ok=True)
