"""Generated rows: as much text as fits a number of tokens, made once and then read by every run.

A file (see :mod:`refine_pl.data.cache_files`) is named by everything that its rows depend on. Its
first line says what people should know about the rows and what the digests of both are.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from refine_pl.checksums import sealed, unsealed
from refine_pl.data.cache_files import cached_file, default_cache_dir, digest_of
from refine_pl.data.tasks.base import TaskSource
from refine_pl.errors import ConfigError
from refine_pl.task_records import TaskRow
from refine_pl.tokenizers import Tokenizer

_FORMAT = 2  # of the first line


class GeneratedRows(TaskSource):
    """A source that makes its rows, for several lengths, and keeps them.

    Attributes:
        lengths: tokens of a row, prompt and answer together.
        version: raised when the same settings give other rows.
    """

    lengths: list[int]
    version = 1

    @abstractmethod
    def made_from(self, memo_dir: Path) -> dict[str, Any]:
        """All that decides the rows but the tokenizer: settings, and digests of files or a corpus.

        Args:
            memo_dir: where digests of large files may be remembered.
        """

    @abstractmethod
    def make(self, tokenizer: Tokenizer) -> tuple[list[TaskRow], list[str]]:
        """The rows of every length, and what people should know about them."""

    def rows(self, tokenizer: Tokenizer) -> list[TaskRow]:
        """The rows of every length, from the cache if they were made before.

        Raises:
            DataError: a row cannot be used, or there is none for a length.
            ConfigError: a length is too short for any row, or the cache cannot be written.
        """
        root = self.cache_dir or default_cache_dir()
        settings = sorted(self.made_from(root / "hashes").items())
        key = digest_of(_FORMAT, self.version, type(self).__name__, settings, tokenizer.fingerprint)
        path = root / "rows" / f"{key}.jsonl"
        if path.is_file():
            try:
                rows, self.notes = read_rows(path)
                return rows
            except ValueError as error:
                self.notify(f"The rows in {path} are damaged ({error}): they are made again.")
        self.notify(f"Generating rows of {self.label} into {path}, once.")
        rows, self.notes = self.make(tokenizer)
        header = sealed({"hash": rows_hash(rows), "notes": self.notes})
        with cached_file(path) as building:
            records = (header, *(row._asdict() for row in rows))
            building.write_text("".join(json.dumps(record) + "\n" for record in records))
        return rows

    def check_lengths(self, least: int, why: str = "") -> None:
        """Raise a ConfigError for lengths that are not different, or shorter than ``least``."""
        lengths = self.lengths
        if not lengths or len(set(lengths)) < len(lengths) or min(lengths) < least:
            raise ConfigError(
                f"lengths is {list(lengths)}",
                where=type(self).__name__,
                allowed=f"one or more different numbers of tokens, each at least {least}{why}",
            )


def rows_hash(rows: Iterable[TaskRow]) -> str:
    """A digest of the content of rows, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def read_rows(path: Path) -> tuple[list[TaskRow], list[str]]:
    """The rows of a file, and what people should know about them.

    Raises:
        ValueError: they are not those that were written.
    """
    try:
        first, *records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        header = unsealed(first)
        rows = [TaskRow(**record | {"answers": tuple(record["answers"])}) for record in records]
        notes: list[str] = header["notes"]
        if header["hash"] != rows_hash(rows):
            raise ValueError("the rows are not those that were written")
    except (OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return rows, notes


def fill(
    tokenizer: Tokenizer, text: Callable[[int], str], limit: int, upper: int, guess: int
) -> tuple[str, int]:
    """The text with as many pieces as fit, and their number.

    The whole text is counted: tokenizers merge over the borders of pieces, so the counts of pieces
    cannot be added up. ``limit``, ``upper`` and ``guess`` are those of :func:`most_that_fits`.
    """
    number = most_that_fits(lambda n: len(tokenizer.encode(text(n))), limit, upper, guess)
    return text(number), number


def most_that_fits(measure: Callable[[int], int], limit: int, upper: int, guess: int = 1) -> int:
    """The number ``n`` of pieces that fits while ``n + 1`` does not, or ``upper`` if that fits.

    Args:
        measure: tokens of the text with ``n`` pieces; ``measure(0)`` is at most ``limit``.
        limit: the most tokens.
        upper: the most pieces.
        guess: where the search begins; it decides how long it takes, nothing else.
    """
    fits, size = 0, measure(0)
    too_many = upper + 1
    probe = guess
    rounds = 0
    while too_many - fits > 1:
        probe = min(max(probe, fits + 1), too_many - 1)
        tokens = measure(probe)
        rate = max(1e-9, (tokens - size) / (probe - fits))
        if tokens <= limit:
            fits, size = probe, tokens
        else:
            too_many = probe
        rounds += 1
        # Pieces differ in length: halving now and then bounds the number of rounds.
        halve = rounds % 4 == 0 and too_many <= upper
        probe = (fits + too_many) // 2 if halve else fits + int(min((limit - size) / rate, upper))
    return fits
