"""How figures look, on a light and on a dark page, and how they become files.

Matplotlib is imported when something is drawn: it takes long, and training without a logger draws
nothing.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a figure."""

    background: str
    text: str
    faint: str  # grid, borders
    muted: str  # raw series beside their means
    runs: tuple[str, ...]  # one for each run, then again from the first
    mark: str  # chosen positions

    def run(self, index: int) -> str:
        """The colour of a run."""
        return self.runs[index % len(self.runs)]


LIGHT = Theme(
    background="#ffffff",
    text="#24292f",
    faint="#d8dee4",
    muted="#c4ccd4",
    runs=("#2563b0", "#c4551d", "#1f8a5f", "#8447a8", "#8a6d12", "#b3305f", "#2b8299", "#5b6570"),
    mark="#d62728",
)
DARK = Theme(
    background="#161b22",
    text="#d3dae2",
    faint="#30363d",
    muted="#4a535e",
    runs=("#6aa9f4", "#f0925c", "#5fcf9f", "#c493e6", "#dcbf5a", "#f07fa6", "#6cc8de", "#a9b3bd"),
    mark="#ff6b6b",
)
_COLOURS = 128  # of a file
# From one run to the ninth the colours come again, with another line.
LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure that can be drawn for either page."""

    name: str  # of its file, without the ending
    alt: str  # what it shows, for those who do not see it
    draw: Callable[[Theme], Figure]
    wide: bool = False

    def png(self, theme: Theme) -> bytes:
        """The picture as a PNG file."""
        figure = self.draw(theme)
        from PIL import Image

        image = Image.fromarray(pixels(figure)[..., :3])
        buffer = io.BytesIO()
        # Lines and text need few colours; the file is a third as large.
        few = image.quantize(_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(buffer, format="png", optimize=True)
        return buffer.getvalue()


def new_axes(theme: Theme, width: float, height: float, dpi: int = 150) -> tuple[Figure, Axes]:
    """A figure with one pair of axes.

    Args:
        theme: its colours.
        width: inches.
        height: inches.
        dpi: pixels per inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(width, height), dpi=dpi, layout="constrained", facecolor=theme.background
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=theme.background)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.faint)
    axes.tick_params(colors=theme.text, labelsize=8, color=theme.faint)
    axes.grid(visible=True, color=theme.faint, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def label(axes: Axes, theme: Theme, title: str = "", x: str = "", y: str = "") -> None:
    """Title and names of the axes; a dollar sign is a dollar sign."""
    axes.set_title(title, fontsize=9, color=theme.text, loc="left", parse_math=False)
    for name, place in ((x, axes.set_xlabel), (y, axes.set_ylabel)):
        place(name, fontsize=8, color=theme.text, parse_math=False)


def legend(axes: Axes, theme: Theme, **options: Any) -> None:
    """The legend of everything that has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    style: dict[str, Any] = {"fontsize": 7, "frameon": False, "labelcolor": theme.text}
    box = axes.legend(handles, labels, **style, **options)
    for text in box.get_texts():
        text.set_parse_math(False)


def pixels(figure: Figure) -> np.ndarray:
    """What a figure looks like: ``[height, width, 4]`` uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # Names of documents may be in any script; those without a glyph are boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()
