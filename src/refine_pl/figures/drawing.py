"""How figures look, on a light and on a dark page, and how they become files.

Matplotlib is imported when something is drawn: it takes long, and training without a logger draws
nothing.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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

    def style(self) -> dict[Any, Any]:
        """Matplotlib's settings of colours; all others are in ``figure.mplstyle``."""
        faces = dict.fromkeys(("figure.facecolor", "axes.facecolor"), self.background)
        lines = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
        texts = [f"{part}.labelcolor" for part in ("axes", "xtick", "ytick", "legend")]
        texts.append("axes.titlecolor")
        return faces | dict.fromkeys(lines, self.faint) | dict.fromkeys(texts, self.text)


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
_STYLE = Path(__file__).with_name("figure.mplstyle")
_COLOURS = 128  # of a file
# From one run to the ninth the colours come again, with another line.
LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure that can be drawn for either page."""

    name: str  # of its file, without the ending
    alt: str  # what it shows, for those who do not see it
    figure: Callable[..., Axes]  # draws it with the colours of a theme
    options: Mapping[str, Any]  # of the figure
    wide: bool = False

    def png(self, theme: Theme) -> bytes:
        """The picture as a PNG file."""
        from PIL import Image

        image = Image.fromarray(pixels(self.figure, theme, **self.options)[..., :3])
        buffer = io.BytesIO()
        # Lines and text need few colours; the file is a third as large.
        few = image.quantize(_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(buffer, format="png", optimize=True)
        return buffer.getvalue()


def new_axes(width: float, height: float, dpi: int = 150) -> Axes:
    """One pair of axes in a figure of its own; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi).add_subplot()


def legend(axes: Axes, **options: Any) -> None:
    """The legend of everything that has a label, if anything has."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)


def pixels(figure: Callable[..., Axes], theme: Theme, **options: Any) -> np.ndarray:
    """What a figure with these options looks like: ``[height, width, 4]`` uint8."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with rc_context(theme.style(), _STYLE), warnings.catch_warnings():
        # Names of documents may be in any script; those without a glyph are boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        canvas = FigureCanvasAgg(figure(theme, **options).get_figure(root=True))
        canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()
