"""Files that are made once and kept: where they are, how they are named, and how they are written.

A name is a digest of everything that the content depends on, so a kept file is never out of date.
A file is renamed when it is complete (see :mod:`refine_pl.whole_files`), so it is never read half,
and of several processes that make the same file each can be the last.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from refine_pl.errors import ConfigError
from refine_pl.whole_files import WriteError, replace_file, whole_file

_MEMO_MIN_BYTES = 4 * 2**20  # smaller files are hashed faster than it is worth remembering
_SETTLED_S = 5.0


def default_cache_dir() -> Path:
    """``$REFINE_PL_CACHE``, or ``~/.cache/refine-pl``."""
    return Path(os.environ.get("REFINE_PL_CACHE") or "~/.cache/refine-pl").expanduser()


def digest_of(*values: object) -> str:
    """A digest of plain values and of their order, 32 hexadecimal digits."""
    return hashlib.blake2b(repr(values).encode(), digest_size=16).hexdigest()


@contextlib.contextmanager
def cached_file(path: Path) -> Iterator[Path]:
    """:func:`~refine_pl.whole_files.whole_file` in the folder of caches.

    Raises:
        ConfigError: the folder cannot be written, or the disk is full.
    """
    try:
        with whole_file(path) as building:
            yield building
    except WriteError as error:
        raise ConfigError(
            error.what,
            where="the cache of tokens and generated rows",
            way_out="set data.cache_dir, or the environment variable REFINE_PL_CACHE",
        ) from error


def file_hash(path: Path, memo_dir: Path | None = None) -> str:
    """The digest of a file's bytes, 32 hexadecimal digits.

    Digests of large files are remembered under everything that the file system knows about a
    version of a file: path, size, times of the last change of content and of metadata (which a
    program cannot set), and inode. A file that changed moments ago is not remembered, because a
    second change could fall on the same tick of the clock.

    Args:
        path: the file.
        memo_dir: folder where digests are remembered; ``None`` remembers nothing.
    """
    stat = path.stat()
    memo = None
    if memo_dir is not None and stat.st_size >= _MEMO_MIN_BYTES:
        memo = memo_dir / _version_of(path)
        if memo.is_file() and is_sound_memo(memo):
            return memo.read_text()[:32]
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    settled = time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_S
    if memo is not None and settled and _version_of(path) == memo.name:
        replace_file(memo, _remembered(memo.name, digest))
    return digest


def is_sound_memo(memo: Path) -> bool:
    """Whether a digest is remembered as :func:`file_hash` wrote it; only sound ones are used."""
    text = memo.read_text(errors="replace")
    return text == _remembered(memo.name, text[:32])


def _remembered(version: str, digest: str) -> str:
    return digest + digest_of(version, digest)


def _version_of(path: Path) -> str:
    stat = path.stat()
    times = (stat.st_mtime_ns, stat.st_ctime_ns)
    return digest_of(str(path.resolve()), stat.st_size, times, stat.st_ino, stat.st_dev)
