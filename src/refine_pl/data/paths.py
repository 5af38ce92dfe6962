"""The user's paths and patterns: which files they stand for, and what those are called."""

from __future__ import annotations

import contextlib
import glob
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from refine_pl.errors import DataError, nearest


class MissingFileError(DataError):
    """A file that was named is not there, or none that a pattern stands for."""


@contextlib.contextmanager
def named_by(key: str, more: str | None = None) -> Iterator[None]:
    """Say which setting named the files, where one is missing.

    Args:
        key: of the setting.
        more: another way out.

    Raises:
        MissingFileError: with the key.
    """
    try:
        yield
    except MissingFileError as error:
        where, way_out = f"{key}; {error.where}", error.way_out
        if more is not None:
            way_out = f"{way_out}; {more}"
        raise MissingFileError(error.what, where=where, way_out=way_out) from error


def find_files(paths: Sequence[str], suffixes: Collection[str]) -> list[str]:
    """The files that paths and patterns stand for, each once; those of a pattern are sorted.

    Raises:
        DataError: a file is missing, a pattern matches nothing, or a suffix is unknown.
    """
    if not paths:
        raise DataError("paths is empty", allowed="at least one path or pattern")
    found = [name for path in paths for name in _expand(path)]
    files = list({Path(name).resolve(): name for name in reversed(found)}.values())[::-1]
    for name in files:
        if Path(name).suffix not in suffixes:
            example = sorted(suffixes)[-1]
            raise DataError(
                f"files ending in {Path(name).suffix or 'no suffix'!r} cannot be read",
                where=name,
                allowed=", ".join(suffixes),
                way_out=f"name files or patterns with these endings, such as data/**/*{example}",
            )
    return files


def shown_paths(paths: Sequence[str]) -> str:
    """Paths as they were given, shortened."""
    return ", ".join(paths[:2]) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")


def short_names(files: list[str]) -> list[str]:
    """The names of files without folder and ending, or with as much of both as tells them apart."""
    paths = [Path(name) for name in files]
    names = [path.stem for path in paths]
    for depth in range(2, max(len(path.parts) for path in paths) + 1):
        count = Counter(names)
        names = [
            "/".join(path.with_suffix("").parts[-depth:]) if count[name] > 1 else name
            for name, path in zip(names, paths, strict=True)
        ]
    count = Counter(names)
    return [
        name + path.suffix if count[name] > 1 else name
        for name, path in zip(names, paths, strict=True)
    ]


def _expand(path: str) -> list[str]:
    """The files that one path or pattern stands for."""
    path = str(Path(path).expanduser())
    if Path(path).is_file():  # before patterns: a name may hold brackets
        return [path]
    if Path(path).is_dir():
        raise DataError(
            "a folder was given where files are expected",
            where=path,
            way_out=f"give a pattern: {path}/**/*.txt",
        )
    if glob.has_magic(path):
        found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
        if not found:
            raise MissingFileError(
                f"no file matches {path!r}",
                where=f"patterns start from {Path.cwd()}",
                way_out="check the pattern; ** stands for folders of any depth",
            )
        return found
    folder = Path(path).parent
    guess = nearest(Path(path).name, [p.name for p in folder.iterdir()] if folder.is_dir() else [])
    raise MissingFileError(
        f"file not found: {path}",
        where=f"paths start from {Path.cwd()}",
        way_out=f"did you mean {folder / guess}?" if guess else "check the path",
    )
