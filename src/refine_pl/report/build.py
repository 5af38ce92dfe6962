"""From folders to files: read, lay out, draw, write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from refine_pl.errors import ConfigError
from refine_pl.report.drawing import DARK, LIGHT, Picture
from refine_pl.report.html import render_html
from refine_pl.report.markdown import FIGURES, figures_of, render_markdown
from refine_pl.report.page import Page
from refine_pl.report.runs import Run, open_runs
from refine_pl.report.sections.ablation import ablation_sections
from refine_pl.report.sections.comparison import comparison_section
from refine_pl.report.sections.evaluation import evaluation_section
from refine_pl.report.sections.overview import runs_section, settings_section
from refine_pl.report.sections.rollouts import entropy_section, rewards_section, rollouts_section
from refine_pl.report.sections.training import curves_section, validation_section

HTML, MARKDOWN = "report.html", "report.md"


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
    found = [
        runs_section(runs),
        settings_section(runs),
        validation_section(runs),
        evaluation_section(runs),
        comparison_section(runs),
        *ablation_sections(runs),
        curves_section(runs),
        rewards_section(runs),
        entropy_section(runs),
        rollouts_section(runs),
    ]
    names = [run.label for run in runs]
    title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    made = time.strftime("%Y-%m-%d %H:%M")
    return Page(
        f"Report: {title}",
        f"refine-pl {_version()}, {made}",
        names,
        [section for section in found if section is not None],
    )


def _version() -> str:
    try:
        return version("refine-pl")
    except PackageNotFoundError:
        return "(not installed)"


def _write(page: Page, folder: Path) -> Written:
    drawn: dict[str, bytes] = {}
    figures = []
    for picture in page.pictures():
        file = folder / FIGURES / f"{picture.name}.png"
        if file in figures:
            raise AssertionError(f"two figures are called {picture.name}")
        drawn[picture.name] = picture.png(LIGHT)
        file.write_bytes(drawn[picture.name])
        figures.append(file)

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
