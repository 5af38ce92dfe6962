"""Documents from the user's own files: ``.txt``, ``.jsonl`` and ``.parquet``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from refine_pl.data.cache_files import digest_of, file_hash
from refine_pl.data.corpora.base import Corpus
from refine_pl.data.file_records import FileRecord, decoded
from refine_pl.data.paths import find_files, shown_paths


class Files(Corpus):
    """Documents from files.

    A ``.txt`` file is one document, each line of a ``.jsonl`` file and each row of a ``.parquet``
    file is one. Files are read in the order given, those of a pattern sorted by path; a file that
    is named twice is read once. Large files are read piece by piece.

    Args:
        paths: paths or patterns (``*``, ``?``, ``[...]``, and ``**`` for any depth), relative to
            the folder that ``refine-pl`` was started from.
        text_column: the key of a ``.jsonl`` line, or the column of a ``.parquet`` file.
        on_bad_row: ``error`` stops at a row without usable text; ``skip`` leaves it out and counts.
    """

    def __init__(
        self,
        paths: str | list[str],
        text_column: str = "text",
        on_bad_row: Literal["error", "skip"] = "error",
    ) -> None:
        self.paths = [paths] if isinstance(paths, str) else list(paths)
        self.text_column = text_column
        self.on_bad_row = on_bad_row

    @property
    def label(self) -> str:
        """The paths as they were given, shortened."""
        return f"Files {shown_paths(self.paths)}"

    def files(self) -> list[str]:
        """The files that ``paths`` stands for.

        Raises:
            DataError: a file is missing, a pattern matches nothing, or a suffix is unknown.
        """
        return find_files(self.paths, (".txt", ".jsonl", ".parquet"))

    def content_hash(self, memo_dir: Path | None = None) -> str:
        """A digest of the files' names and bytes and of the settings that choose the text."""
        files = [(name, file_hash(Path(name), memo_dir)) for name in self.files()]
        return digest_of(self.text_column, self.on_bad_row, files)

    def read(self) -> Iterator[tuple[str, str]]:
        """Yield documents named by path, and by line (from 1) or row (from 0) where there are."""
        for name in self.files():
            if name.endswith(".txt"):
                yield from self.usable([name], _whole)
            else:
                yield from self.read_file(name, [self.text_column], self._document)

    def _document(self, record: FileRecord) -> tuple[str, str]:
        text = record.text(self.text_column, "text_column", blank=True)
        return f"{record.file}:{record.number}", text


def _whole(name: str) -> tuple[str, str]:
    return name, decoded(Path(name).read_bytes(), name)
