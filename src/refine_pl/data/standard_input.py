"""Rows that come from standard input, which can be read once."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass

from refine_pl.errors import DataError

STANDARD_INPUT = "-"
"""In place of a path."""


@dataclass(frozen=True, slots=True)
class StandardInput:
    """What was read: JSON lines if the first one begins with ``{``, otherwise a text per line."""

    lines: tuple[bytes, ...]
    hold_json: bool

    @classmethod
    def read(cls) -> StandardInput:
        """All of it, to its end.

        Raises:
            DataError: there is no text, or a file of another kind.
        """
        if sys.stdin is None or sys.stdin.closed:
            raise DataError("standard input is closed", way_out="--prompts FILE")
        if sys.stdin.isatty():
            sys.stderr.write("A prompt per line, or JSON lines; Ctrl-D ends them.\n")
        content = sys.stdin.buffer.read()
        if content.startswith(b"PAR1"):
            raise DataError(
                "standard input is a parquet file",
                allowed="a prompt per line, or JSON lines",
                way_out="write it to a file that ends in .parquet, and name that",
            )
        if not content.strip():
            raise DataError("standard input is empty", allowed="a prompt per line, or JSON lines")
        first = content.removeprefix(b"\xef\xbb\xbf").lstrip()
        return cls(tuple(io.BytesIO(content)), first.startswith(b"{"))
