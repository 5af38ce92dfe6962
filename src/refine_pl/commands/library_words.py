"""What libraries print during a run: of use or not, and as a line that people can read."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

_UNNEEDED = (
    ".*(treespec|LeafSpec)",  # Lightning's own use of its dependencies
    "The dirpath has changed",  # every run has a folder of its own: a resumed one saves elsewhere
    ".*`loftq_config` specified but will be ignored",  # peft warns of its own default
    ".*sync_dist=True",  # what is logged was summed over all processes before
)

_OWN_FOLDER = str(Path(__file__).parents[1])
_with_place = warnings.formatwarning


def arrange_them() -> None:
    """Leave out what is not of use, and give this project's own warnings without their place."""
    for message in _UNNEEDED:
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = _format
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_of_use)


def _format(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    if filename.startswith(_OWN_FOLDER) and issubclass(category, UserWarning):
        return f"warning: {message}\n"  # it is for people; where it was raised helps nobody
    return _with_place(message, category, filename, lineno, line)


def _is_of_use(record: logging.LogRecord) -> bool:
    """Not a tip, nor what the last line says better."""
    return not any(word in record.getMessage() for word in ("Tip:", "Detected KeyboardInterrupt"))
